"""Percentile ranks of the importance scores over many tensors, from a histogram of their bit patterns.

A score's rank is the share of all scores below it plus half the share equal to it (mid-rank). Scores that agree in the
upper 17 bits of their float32 pattern (closer than 0.4%) count as equal. Two passes over the scores and 512 KB replace
a sort, and histograms of several processes simply add.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import reference
from .kernels.backend import HISTOGRAM_BINS, RANK_CODES, Backend


def rank_code_table(histogram: Tensor) -> Tensor:
    """The rank code of each bin: min(255, 256 * (2 * below + count) // (2 * n)); uint8 ``[65536]``.

    Args:
        histogram: int64 ``[65536]``, number of scores per bin, in all tensors and processes.
    """
    total = histogram.sum().clamp_(min=1)
    below = histogram.cumsum(0) - histogram
    codes = (RANK_CODES * (2 * below + histogram)).div(2 * total, rounding_mode="floor")
    return codes.clamp_(max=RANK_CODES - 1).to(torch.uint8)


def score_histogram(scores: list[tuple[Backend, list[Tensor]]]) -> Tensor:
    """Number of scores in each bin over all given tensors; int64 ``[65536]``, on the device of the first tensor.

    Args:
        scores: non-negative float32 tensors, with the backend that counts them.
    """
    devices = [tensors[0].device for _, tensors in scores if tensors]
    total = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64, device=devices[0] if devices else None)
    for backend, tensors in scores:
        if tensors:
            counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64, device=tensors[0].device)
            backend.histogram_(tensors, counts)
            total += counts.to(total.device)
    return total


def percentile_ranks(scores: list[Tensor]) -> list[Tensor]:
    """Rank codes (uint8) of non-negative float32 scores, ranked over all tensors together; the scores are not changed.

    Code c stands for the percentile rank (c + 0.5) / 256.
    """
    counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64)
    reference.histogram_(scores, counts)
    rank_codes = [torch.empty_like(score, dtype=torch.uint8) for score in scores]
    reference.assign_rank_codes_([score.clone() for score in scores], rank_codes, rank_code_table(counts))
    return rank_codes


def fill_random_scores_(scores: Tensor, seed: int, placement: reference.Placement) -> None:
    """A fixed random score per element: the upper 24 bits of the word with draw number 0, which no step uses, / 2**24."""
    for start, (chunk,) in reference.chunks([scores]):
        words = reference.draw_words(
            placement, start, chunk.numel(), seed=seed, draw_number=0, device=scores.device
        )
        chunk.copy_((words >> 8).to(torch.float32).mul_(2.0**-24).view(chunk.shape))


def fill_magnitude_scores_(scores: Tensor, param: Tensor) -> None:
    """The absolute value of each parameter in float32; NaN counts as zero, infinity as the largest float32."""
    largest = torch.finfo(torch.float32).max
    for _, (chunk, values) in reference.chunks([scores, param]):
        chunk.copy_(values.to(torch.float32).abs().nan_to_num_(nan=0.0, posinf=largest))
