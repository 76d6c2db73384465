"""Looking at results before all seeds have run, at an error rate that is fixed beforehand.

Of the two-sided error rate of 5%, a look may spend what Lan and DeMets (Biometrika 1983) allow it by then in their
version of O'Brien and Fleming's bounds: little early on. ``python -m benchmarks.robustness.looks`` prints the levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, norm

SEEDS = (5, 8, 11, 14)  # at which results are looked at, and at no other number
ERROR_RATE = 0.05


def spent(share: float) -> float:
    """How much of the error rate may be spent when this share of all seeds has run."""
    return float(2 - 2 * norm.cdf(norm.ppf(1 - ERROR_RATE / 2) / share**0.5))


@cache
def levels(seeds: Sequence[int] = SEEDS) -> tuple[float, ...]:
    """The two-sided level of each look: an interval of 1 - level is looked at instead of one of 95%.

    Found one after the other, so that the chance to reach beyond any bound up to a look is what may be spent by then.
    """
    shares = numpy.array(seeds) / seeds[-1]
    correlation = numpy.sqrt(numpy.minimum.outer(shares, shares) / numpy.maximum.outer(shares, shares))
    bounds: list[float] = []
    for look, share in enumerate(shares, 1):

        def excess(bound: float, look: int = look, share: float = share) -> float:
            reach = numpy.array([*bounds, bound])
            inside = multivariate_normal(numpy.zeros(look), correlation[:look, :look], seed=0)
            return float(1 - inside.cdf(reach, lower_limit=-reach) - spent(share))

        bounds.append(brentq(excess, 1.0, 8.0, xtol=1e-4))
    return tuple(float(2 - 2 * norm.cdf(bound)) for bound in bounds)


if __name__ == "__main__":
    for seeds, level in zip(SEEDS, levels(), strict=True):
        print(f"{seeds} seeds: {100 * (1 - level):.2f}% intervals")
