"""The stages: their order, their limits, and the program of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

DRY_RUN_LIMIT = 120.0  # seconds, of every stage that has a shorter one: a dry run shares its processors with others


@dataclass(frozen=True)
class Stage:
    """A program with a limit; what it finds out is worth having even if all others fail.

    Attributes:
        name: as in the results.
        limit: seconds after which it is ended; infinity: whatever the budget leaves.
        program: what follows the name of the Python interpreter.
    """

    name: str
    limit: float
    program: tuple[str, ...]

    def limit_in(self, dry_run: bool) -> float:
        """Seconds that this stage may take."""
        return max(self.limit, DRY_RUN_LIMIT) if dry_run else self.limit


def _stage(name: str, limit: float, module: str) -> Stage:
    return Stage(name, limit, ("-m", f"{__package__}.stages.{module}"))


# What decides most comes first. Nothing runs beside a stage, so no timing is disturbed.
STAGES = (
    _stage("environment", 20, "environment"),
    _stage("smoke", 40, "smoke"),
    _stage("step, 110M", 40, "step_110m"),
    _stage("graph", 20, "graph"),
    _stage("tests", 130, "kernel_tests"),
    _stage("step, the rest", 60, "step_the_rest"),
    _stage("adversary", 40, "adversary"),
    _stage("memory check", 60, "memory_check"),
    _stage("counters", 30, "counters"),
    _stage("choice", math.inf, "choice"),
)
