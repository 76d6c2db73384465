"""From runs to what is told about methods: mean scores, and relative improvement over plain fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .metrics import relative_improvement
from .runs import Row


@dataclass(frozen=True)
class Perspective:
    """A score by its key in a run, its title in tables, and its best value."""

    key: str
    title: str
    best: float


PERSPECTIVES = (
    Perspective("acc_in", "In-distribution", 1.0),
    Perspective("acc_shift", "Shift", 1.0),
    Perspective("acc_adv", "Adversarial", 1.0),
    Perspective("ece", "ECE", 0.0),
    Perspective("auroc", "AUROC", 1.0),
)


@dataclass(frozen=True)
class MethodSummary:
    """Means over the seeds of one method; None where the data has no such set."""

    method: str
    seeds: int
    scores: dict[str, float | None]
    seconds: float
    improvement: dict[str, float | None]  # over plain, by perspective; all None without plain runs
    average_improvement: float | None  # over the perspectives that have one

    def as_json(self) -> dict[str, Any]:
        return {
            "seeds": self.seeds,
            **self.scores,
            "seconds": self.seconds,
            "relative_improvement": {**self.improvement, "average": self.average_improvement},
        }


def summarize(rows: Sequence[Row]) -> list[MethodSummary]:
    """One summary per method, in the order in which the methods first occur."""
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    plain = mean_scores(by_method.get("plain", []))
    return [summarize_method(method, runs, plain) for method, runs in by_method.items()]


def summarize_method(method: str, runs: Sequence[Row], plain: dict[str, float | None]) -> MethodSummary:
    scores = mean_scores(runs)
    improvement = {each.key: improved(scores[each.key], plain[each.key], each.best) for each in PERSPECTIVES}
    return MethodSummary(
        method=method,
        seeds=len(runs),
        scores=scores,
        seconds=sum(run["seconds"] for run in runs) / len(runs),
        improvement=improvement,
        average_improvement=mean(list(improvement.values())),
    )


def mean_scores(runs: Sequence[Row]) -> dict[str, float | None]:
    return {each.key: mean([run[each.key] for run in runs]) for each in PERSPECTIVES}


def improved(score: float | None, plain: float | None, best: float) -> float | None:
    return None if score is None or plain is None else relative_improvement(score, plain, best)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
