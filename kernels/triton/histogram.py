"""Counting the importance scores per bin of their bit patterns, the first of the two passes of a refresh."""

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
from .pointer_table import PointerTable, elements, is_aligned, load, program_part


def histogram_(scores: list[Tensor], counts: Tensor) -> None:
    """Add the number of scores in each of the 65,536 bins to ``counts``; see :func:`..reference.histogram_`."""
    members: dict[tuple[torch.device, torch.dtype, bool], list[list[int]]] = defaultdict(list)
    for score in scores:
        if score.is_contiguous() and score.device == counts.device and counts.is_contiguous():
            row = [score.numel(), score.data_ptr()]
            members[score.device, score.dtype, is_aligned(row[1:])].append(row)
        else:
            reference.histogram_([score], counts)
    for (device, dtype, aligned), rows in members.items():
        with on(device):
            table = PointerTable(device, [row[0] for row in rows], [row[1:] for row in rows])
            _histogram_kernel[table.grid](
                *table.on_device(DeviceTables()),
                counts,
                **table.constants,
                SCORE=FLOAT_TYPES[dtype],
                ALIGNED=aligned,
                **OPTIONS,
            )


@triton.jit
def _histogram_kernel(
    rows,
    tensor_of_program,
    counts,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    SCORE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    row, begin, full, end = program_part(rows, tensor_of_program, COLUMNS, CHUNK, BLOCK)
    lowest = tl.zeros([BLOCK], tl.int32)
    for start in range(begin, full, BLOCK):
        lowest += _count_block(row, start, None, counts, SCORE, ALIGNED, BLOCK, False)
    if full < end:
        lowest += _count_block(row, full, tl.arange(0, BLOCK) < end - full, counts, SCORE, ALIGNED, BLOCK, True)
    tl.atomic_add(counts, tl.sum(lowest, 0).to(tl.int64), sem="relaxed")


@triton.jit
def _count_block(
    row, start, mask, counts, SCORE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr
):
    """Add a block to the counts and return which scores lie in the lowest bin, to be added together.

    Often most scores are zero (embeddings of words that did not occur): one atomic addition each to the same address
    would take as long as all the rest.
    """
    scores = load(elements(row, 0, start, SCORE, ALIGNED, BLOCK), mask, MASKED).to(tl.float32)
    bins = scores.to(tl.int32, bitcast=True) >> 15
    valid = bins >= 0
    if MASKED:
        valid = mask
    tl.atomic_add(counts + bins, 1, mask=valid & (bins != 0), sem="relaxed")
    return (valid & (bins == 0)).to(tl.int32)
