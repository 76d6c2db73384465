"""Accumulation, histogram and rank codes: exactly the reference's, for every dtype, alignment and layout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from roast_optim.kernels import reference
from roast_optim.kernels.step import HISTOGRAM_BINS
from roast_optim.kernels.triton import launch
from tests.support.devices import DEVICE, on_device

TRITON = on_device("triton")
BLOCK = launch.block_size(DEVICE)
SIZES = [0, 1, 5, BLOCK, 2 * BLOCK + 7, BLOCK * launch.BLOCKS_PER_PROGRAM + 3]


def scores(offset: int) -> list[Tensor]:
    """Spread over many orders of magnitude, a third of them zero; ``offset`` elements behind an aligned address."""
    generator = torch.Generator().manual_seed(offset)
    tensors = [torch.randn(size + offset, generator=generator).mul(8).exp()[offset:] for size in SIZES]
    for tensor in tensors:
        tensor[::3] = 0
    return [*tensors, tensors[2].clone().expand(2, 5), torch.rand(6, 5, generator=generator).T]


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_accumulation(dtype: torch.dtype, offset: int) -> None:
    actual = [tensor.contiguous() for tensor in scores(offset)]
    expected = [tensor.clone() for tensor in actual]
    gradients = [torch.randn(tensor.shape).mul(1e10).to(dtype) for tensor in actual]
    gradients[3][:4] = torch.tensor([math.nan, math.inf, -math.inf, torch.finfo(dtype).max])
    TRITON.accumulate_importance_(actual, gradients)
    reference.accumulate_importance_(expected, gradients)
    for importance, wanted in zip(actual, expected, strict=True):
        assert torch.equal(importance, wanted)


@pytest.mark.parametrize("offset", [0, 3])
def test_histogram_and_rank_codes(offset: int) -> None:
    counts, expected = (torch.ones(HISTOGRAM_BINS, dtype=torch.int64) for _ in range(2))
    TRITON.histogram_(scores(offset), counts)
    reference.histogram_(scores(offset), expected)
    assert torch.equal(counts, expected)

    table = torch.randint(256, (HISTOGRAM_BINS,)).to(torch.uint8)
    actual, wanted = ([tensor.clone() for tensor in scores(offset)[:-2]] for _ in range(2))
    codes, wanted_codes = ([torch.zeros(tensor.shape, dtype=torch.uint8) for tensor in actual] for _ in range(2))
    TRITON.assign_rank_codes_(actual, codes, table)
    reference.assign_rank_codes_(wanted, wanted_codes, table)
    for importance, code, wanted_code in zip(actual, codes, wanted_codes, strict=True):
        assert torch.equal(code, wanted_code)
        assert not importance.any()


def test_no_tensors_at_all() -> None:
    counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64)
    TRITON.accumulate_importance_([], [])
    TRITON.histogram_([], counts)
    TRITON.assign_rank_codes_([], [], torch.zeros(HISTOGRAM_BINS, dtype=torch.uint8))
    assert not counts.any()
