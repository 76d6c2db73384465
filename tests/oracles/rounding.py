"""Stochastic rounding to a shorter format, from the definition: the two neighbours and the way between them.

Gupta, Agrawal, Gopalakrishnan, Narayanan, "Deep learning with limited numerical precision", ICML 2015, section 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tests.oracles import philox

Float64Array = npt.NDArray[np.float64]
_WORD = 0xFFFFFFFF


class Format(NamedTuple):
    """A binary floating-point format: significant bits, exponents of its largest and its smallest normal number."""

    precision: int
    largest_exponent: int
    smallest_exponent: int

    @property
    def largest(self) -> float:
        """Its largest finite number."""
        return float((2 - 2.0 ** (1 - self.precision)) * 2.0**self.largest_exponent)


BFLOAT16 = Format(8, 127, -126)
FLOAT16 = Format(11, 15, -14)


def stochastically_rounded(values: npt.ArrayLike, bits: npt.ArrayLike, to: Format) -> Float64Array:
    """The neighbour of each value towards zero, or the other if the way to it and the 16 bits make a whole.

    The way counts in 65536ths, rounded down. Beyond the largest number the nearer of that and the next power of two is
    taken, which is infinity.
    """
    exact = np.asarray(values, dtype=np.float64)
    magnitude = np.abs(exact)
    finite = np.isfinite(exact)
    _, exponent = np.frexp(np.where(finite, magnitude, 0.0))
    unit = np.exp2(np.maximum(exponent - 1, to.smallest_exponent).astype(np.float64) - (to.precision - 1))
    units = np.where(finite, magnitude, 0.0) / unit
    towards_zero = np.floor(units)
    way = np.floor((units - towards_zero) * 65536)
    rounded = (towards_zero + (way + np.asarray(bits, dtype=np.float64) >= 65536)) * unit
    half_beyond = to.largest * (1 + 2.0**-to.precision / (2 - 2.0 ** (1 - to.precision)))
    beyond = np.where(magnitude >= half_beyond, np.inf, to.largest)
    rounded = np.where(magnitude > to.largest, beyond, rounded)
    return np.where(finite, np.copysign(rounded, exact), exact)


def bits_of_step(
    seed: int, parameter_id: int, step: int, elements: npt.ArrayLike
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The 16 bits of each element in a step, for the parameter and for its state.

    Two neighbours share a word, of which the one of even index has the lower half: the word that a mask of half the
    index would have, but of a block whose number has its highest bit set. The state's have their bytes exchanged.
    """
    index = np.asarray(elements, dtype=np.uint64)
    words = philox.random_words(seed, parameter_id, step, index // np.uint64(2), first_block=2**63)
    own = np.where(index % np.uint64(2) == 1, words // np.uint64(65536), words % np.uint64(65536))
    return own, own // np.uint64(256) + own % np.uint64(256) * np.uint64(256)


def bits_of_measured(gradient: npt.NDArray[np.floating], importance: npt.NDArray[np.float32]) -> Any:
    """The bits for an importance to which a gradient is added outside of a step."""
    first, second = (np.asarray(each, dtype=np.float32).view(np.uint32) for each in (gradient, importance))
    return philox.philox4x32((first, second, 0, 0), (0, 0), rounds=7)[0] >> np.uint64(16)
