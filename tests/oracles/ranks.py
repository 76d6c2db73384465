"""Importance in float32 and its percentile ranks, by counting in Python integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

LARGEST_FLOAT32 = np.finfo(np.float32).max


def accumulated(
    importance: Float32Array, gradient: npt.NDArray[np.floating], largest: float = float(LARGEST_FLOAT32)
) -> Float32Array:
    """The importance plus gradient^2: each operation rounded to float32, saturating, non-finite gradients ignored."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrow = gradient.astype(np.float32)
        square = (narrow * narrow).astype(np.float32)
        total = np.minimum((importance + square).astype(np.float32), np.float32(largest))
    return np.where(np.isfinite(narrow), total, importance).astype(np.float32)


def bins(scores: Float32Array) -> npt.NDArray[np.int64]:
    """The bin, 0 to 65535, of every non-negative score: its bit pattern without the lowest 15 bits."""
    bits: npt.NDArray[np.uint32] = np.asarray(scores, dtype=np.float32, order="C").view(np.uint32)
    return np.asarray(bits >> np.uint32(15), dtype=np.int64)


def rank_codes_of_histogram(histogram: Mapping[int, int]) -> dict[int, int]:
    """The rank code of every occupied bin, from the bins' counts: the mid-rank in 256ths, rounded down."""
    total = sum(histogram.values())
    below, codes = 0, {}
    for occupied in sorted(histogram):
        count = histogram[occupied]
        codes[occupied] = min(255, 256 * (2 * below + count) // (2 * total))
        below += count
    return codes


def percentile_rank_codes(scores: Sequence[Float32Array]) -> list[npt.NDArray[np.uint8]]:
    """The rank code of every element among the elements of all arrays."""
    binned = [bins(array) for array in scores]
    occupied, counts = np.unique(np.concatenate([array.reshape(-1) for array in binned]), return_counts=True)
    codes = rank_codes_of_histogram(dict(zip(occupied.tolist(), counts.tolist(), strict=True)))
    table = np.zeros(65536, dtype=np.uint8)
    table[list(codes)] = list(codes.values())
    return [table[array] for array in binned]


def exact_mid_ranks(scores: Float32Array) -> npt.NDArray[np.float64]:
    """(elements below + half of the elements equal) / elements, from a sort of the scores themselves."""
    flat = scores.reshape(-1)
    ordered = np.sort(flat)
    below = np.searchsorted(ordered, flat, side="left")
    not_above = np.searchsorted(ordered, flat, side="right")
    return ((below + not_above) / (2 * flat.size)).reshape(scores.shape)
