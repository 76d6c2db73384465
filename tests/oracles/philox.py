"""Philox4x32 and everything that makes a mask: random words, thresholds, rescaling factors.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)  # golden ratio, sqrt(3) - 1
_WORD = 0xFFFFFFFF
_RANK_CODES = 256


def philox4x32(
    counter: tuple[Any, Any, Any, Any], key: tuple[int, int], rounds: int
) -> tuple[UInt64Array, UInt64Array, UInt64Array, UInt64Array]:
    """The four 32-bit output words, as uint64 arrays, of counter words (numbers or arrays) under a key of two words."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    key_words = list(key)
    mask, shift = np.uint64(_WORD), np.uint64(32)
    for number in range(rounds):
        if number:
            key_words = [(word + step) & _WORD for word, step in zip(key_words, _KEY_INCREMENTS, strict=True)]
        first = c0 * np.uint64(_MULTIPLIERS[0])
        second = c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (second >> shift) ^ c1 ^ np.uint64(key_words[0]),
            second & mask,
            (first >> shift) ^ c3 ^ np.uint64(key_words[1]),
            first & mask,
        )
    return c0, c1, c2, c3


def random_words(
    seed: int, parameter_id: int, draw_number: int, elements: npt.ArrayLike, first_block: int = 0
) -> UInt64Array:
    """The 32-bit random word of each element index of a whole, contiguous parameter."""
    index = np.asarray(elements, dtype=np.uint64)
    block = index // np.uint64(4) + np.uint64(first_block)
    counter = (block & np.uint64(_WORD), block >> np.uint64(32), parameter_id, draw_number)
    words = philox4x32(counter, (seed & _WORD, seed >> 32), rounds=7)
    choices = [np.broadcast_to(word, index.shape) for word in words]
    return np.asarray(np.choose((index % np.uint64(4)).astype(np.int64), choices), dtype=np.uint64)


@lru_cache
def thresholds(alpha: float, beta: float) -> UInt64Array:
    """An element of rank code c is kept iff its random word is below entry c: the correctly rounded p * 2^32."""
    with localcontext() as context:
        context.prec = 80
        values = []
        for code in range(_RANK_CODES):
            rank = (Decimal(code) + Decimal("0.5")) / _RANK_CODES
            exponent = 2 * Decimal(beta) * (rank - Decimal(alpha))
            # Beyond 2^32 the logistic function is 0 or 1 to 32 bits, long before exp leaves Decimal's range.
            exponent = max(Decimal(-1000), min(Decimal(1000), exponent))
            probability = 1 / (1 + (-exponent).exp())
            rounded = int((probability * 2**32).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
            values.append(min(max(rounded, 1), 2**32 - 1))
    table = np.array(values, dtype=np.uint64)
    table.flags.writeable = False
    return table


@lru_cache
def rescaling_factors(alpha: float, beta: float) -> npt.NDArray[np.float32]:
    """float32(1 / keep probability), correctly rounded from the exact quotient."""
    table = np.array([_nearest_float32(Fraction(2**32, int(t))) for t in thresholds(alpha, beta)], dtype=np.float32)
    table.flags.writeable = False
    return table


def keep_mask(
    rank_codes: npt.NDArray[np.uint8], alpha: float, beta: float, *, seed: int, parameter_id: int, draw_number: int
) -> npt.NDArray[np.bool_]:
    """Which elements of a whole parameter are updated; the shape of rank_codes."""
    words = random_words(seed, parameter_id, draw_number, np.arange(rank_codes.size))
    kept: npt.NDArray[np.bool_] = words < thresholds(alpha, beta)[rank_codes.reshape(-1)]
    return kept.reshape(rank_codes.shape)


def _nearest_float32(value: Fraction) -> float:
    """The float32 nearest to a rational of at least one, ties to even."""
    exponent = 0
    while value >= 2 ** (exponent + 1):
        exponent += 1
    # round() of a Fraction is exact and rounds half to even; 23 bits stand behind the leading one.
    significand = round(value / Fraction(2) ** (exponent - 23))
    return float(significand * Fraction(2) ** (exponent - 23))
