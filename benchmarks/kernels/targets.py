"""What the benchmarks must show on a CPU, with two threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MEGABYTE = 1e6


@dataclass(frozen=True)
class Target:
    """A figure of one row, and what it should be.

    Attributes:
        what: of the row.
        candidate: of the row.
        quantity: "ratio" to the opponent ``against``, "seconds", or "extra_bytes".
        at_most: what must be reached.
        aim: what one would like to reach.
        against: an opponent in the row.
    """

    what: str
    candidate: str
    quantity: Literal["ratio", "seconds", "extra_bytes"]
    at_most: float
    aim: float
    against: str | None = None


def _step(what: str, candidate: str, at_most: float, aim: float, against: str = "torch AdamW, fused") -> Target:
    return Target(what, candidate, "ratio", at_most, aim, against)


TARGETS = (
    _step("step, 25M", "native (avx512)", 1.30, 1.22),
    _step("step, 110M", "native (avx512)", 1.30, 1.22),
    _step("step, 25M", "native (avx2)", 1.40, 1.32),
    _step("step, 110M", "native (avx2)", 1.40, 1.32),
    _step("step, 25M", "native, importance_every=4", 1.25, 1.10),
    _step("step, 110M", "native, importance_every=4", 1.25, 1.10),
    _step("step, 110M", "native", 1 / 25, 1 / 40, "straightforward torch RoAST"),
    _step("step, 25M", "native, pretrained_decay", 1.25, 1.15, "native"),
    _step("step, 110M", "native, pretrained_decay", 1.25, 1.15, "native"),
    _step("step, 1,000 tiny tensors", "native (avx512)", 1.05, 0.9),
    _step("step, 25M bfloat16", "native, stochastic_rounding", 1.10, 1.05, "native"),
    Target("refresh, 110M", "native", "seconds", 0.15, 0.07),
    Target("refresh, 110M", "reference", "seconds", 1.5, 0.8),
    Target("extra memory of a refresh, 110M", "native", "extra_bytes", 16 * MEGABYTE, 1 * MEGABYTE),
    Target("extra memory of a step, 25M", "reference", "extra_bytes", 64 * MEGABYTE, 64 * MEGABYTE),
    Target(
        "forward and backward, MiniLM, 16 x 64 tokens", 'RoAST, gradient="exact"', "ratio", 2.5, 7 / 3, "plain step"
    ),
    Target("forward and backward, MiniLM, 16 x 64 tokens", 'RoAST, gradient="fast"', "ratio", 2.15, 2.0, "plain step"),
)
