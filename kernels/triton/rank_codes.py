"""Turning importance scores into rank codes, the second of the two passes of a refresh."""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

from collections import defaultdict

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from .importance import FLOAT_TYPES
from .launch import OPTIONS, DeviceTables, on
from .pointer_table import PointerTable, elements, is_aligned, load, program_part, store


def assign_rank_codes_(importances: list[Tensor], rank_codes: list[Tensor], table: Tensor) -> None:
    """Write ``table[bin]`` into the rank codes, reset the scores; see :func:`..reference.assign_rank_codes_`."""
    members: dict[tuple[torch.device, torch.dtype, bool], list[list[int]]] = defaultdict(list)
    for importance, rank_code in zip(importances, rank_codes, strict=True):
        if importance.is_contiguous() and rank_code.is_contiguous():
            row = [importance.numel(), importance.data_ptr(), rank_code.data_ptr()]
            members[importance.device, importance.dtype, is_aligned(row[1:])].append(row)
        else:
            reference.assign_rank_codes_([importance], [rank_code], table)
    for (device, dtype, aligned), rows in members.items():
        with on(device):
            tensors = PointerTable(device, [row[0] for row in rows], [row[1:] for row in rows])
            _rank_codes_kernel[tensors.grid](
                *tensors.on_device(DeviceTables()),
                table.to(device).contiguous(),
                **tensors.constants,
                SCORE=FLOAT_TYPES[dtype],
                ALIGNED=aligned,
                **OPTIONS,
            )


@triton.jit
def _rank_codes_kernel(
    rows,
    tensor_of_program,
    codes,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    SCORE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    row, begin, full, end = program_part(rows, tensor_of_program, COLUMNS, CHUNK, BLOCK)
    for start in range(begin, full, BLOCK):
        _rank_block(row, start, None, codes, SCORE, ALIGNED, BLOCK, False)
    if full < end:
        _rank_block(row, full, tl.arange(0, BLOCK) < end - full, codes, SCORE, ALIGNED, BLOCK, True)


@triton.jit
def _rank_block(
    row, start, mask, codes, SCORE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr
):
    pointers = elements(row, 0, start, SCORE, ALIGNED, BLOCK)
    scores = load(pointers, mask, MASKED).to(tl.float32)
    rank_codes = tl.load(codes + (scores.to(tl.int32, bitcast=True) >> 15))
    store(elements(row, 1, start, tl.uint8, ALIGNED, BLOCK), rank_codes, mask, MASKED)
    store(pointers, tl.zeros([BLOCK], tl.float32), mask, MASKED)
