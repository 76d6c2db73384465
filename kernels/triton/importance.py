"""Accumulating the importance scores: s <- s + g * g."""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

from collections import defaultdict

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from .launch import OPTIONS, DeviceTables, on
from .pointer_table import PointerTable, elements, is_aligned, load, program_part, store

FLOAT_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
LARGEST_FLOAT32 = tl.constexpr(torch.finfo(torch.float32).max)


def accumulate_importance_(
    importances: list[Tensor], grads: list[Tensor], held_for_graphs: list[Tensor] | None = None
) -> None:
    """Add the squared gradients to the importance scores; see :func:`..reference.accumulate_importance_`.

    Bit for bit the reference's, which also takes what is not contiguous, gradients that are not float32, bfloat16 or
    float16, and scores of bfloat16, of which a training's steps make no use. A CUDA graph can hold it if
    ``held_for_graphs`` takes what its replays read.
    """
    members: dict[tuple[torch.device, torch.dtype, bool], list[list[int]]] = defaultdict(list)
    for importance, grad in zip(importances, grads, strict=True):
        known = grad.dtype in FLOAT_TYPES and importance.dtype is torch.float32
        if known and importance.is_contiguous() and grad.is_contiguous():
            row = [importance.data_ptr(), grad.data_ptr(), importance.numel()]
            members[importance.device, grad.dtype, is_aligned(row[:2])].append(row)
        else:
            reference.accumulate_importance_([importance], [grad])
    for (device, dtype, aligned), rows in members.items():
        with on(device):
            table = PointerTable(device, [row[-1] for row in rows], [row[:-1] for row in rows])
            _accumulate_kernel[table.grid](
                *table.on_device(DeviceTables(held_for_graphs)),
                **table.constants,
                GRAD=FLOAT_TYPES[dtype],
                ALIGNED=aligned,
                **OPTIONS,
            )


@triton.jit
def add_squares(scores, grads, LARGEST: tl.constexpr):
    """fl(s + fl(g * g)), saturating at LARGEST; a non-finite g adds nothing."""
    squares = tl.where(tl.abs(grads) <= LARGEST_FLOAT32, grads * grads, 0.0)
    return tl.minimum(scores + squares, LARGEST)


@triton.jit
def _accumulate_kernel(
    rows,
    tensor_of_program,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    GRAD: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    row, begin, full, end = program_part(rows, tensor_of_program, COLUMNS, CHUNK, BLOCK)
    for start in range(begin, full, BLOCK):
        _accumulate_block(row, start, None, GRAD, ALIGNED, BLOCK, False)
    if full < end:
        _accumulate_block(row, full, tl.arange(0, BLOCK) < end - full, GRAD, ALIGNED, BLOCK, True)


@triton.jit
def _accumulate_block(
    row, start, mask, GRAD: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr
):
    scores = elements(row, 0, start, tl.float32, ALIGNED, BLOCK)
    grads = load(elements(row, 1, start, GRAD, ALIGNED, BLOCK), mask, MASKED).to(tl.float32)
    store(scores, add_squares(load(scores, mask, MASKED), grads, LARGEST_FLOAT32), mask, MASKED)
