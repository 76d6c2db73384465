"""From runs to what is told about methods: mean scores, relative improvement over plain fine-tuning, intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy
from scipy.stats import t as student

from roast_optim.evaluation.metrics import relative_improvement
from roast_optim.evaluation.scores import PERSPECTIVES, Perspective, mean

from .runs import Row

ERROR_RATE = 0.05
RESAMPLES = 3125  # as many as there are of five seeds: up to there it is all of them, beyond they are drawn


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


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval over seeds, of 95% if nothing else is said; None with a single seed.

    It is about other seeds on the same rows: that other rows might have been sampled is not in it.
    """

    value: float
    low: float | None
    high: float | None


def bootstrap(
    statistic: Callable[[Sequence[int]], float | None], seeds: Sequence[int], error_rate: float = ERROR_RATE
) -> Interval | None:
    """The statistic of all seeds, and how far it is to be trusted by its spread over seeds drawn with replacement.

    Runs of one seed stay together, so that the difference of two methods is judged by pairs. Percentiles of so few
    seeds would be far too narrow (of three they hold the truth three times of four). So the interval is the standard
    error times the quantile of Student's t, the spread being corrected for the number of seeds: of a mean it is the
    usual t interval. None if the statistic has no value.

    Args:
        error_rate: how often the interval may miss the truth; two-sided.
    """
    value = statistic(seeds)
    if value is None:
        return None
    if len(seeds) < 2:
        return Interval(value, None, None)
    drawn = [each for each in map(statistic, resamples(seeds)) if each is not None]
    error = numpy.std(drawn) * (len(seeds) / (len(seeds) - 1)) ** 0.5
    reach = float(error * student.ppf(1 - error_rate / 2, len(seeds) - 1))
    return Interval(value, value - reach, value + reach)


def resamples(seeds: Sequence[int]) -> Iterable[Sequence[int]]:
    """As many seeds drawn with replacement, in all ways or, if there are more, in RESAMPLES of them."""
    if len(seeds) ** len(seeds) <= RESAMPLES:
        return product(seeds, repeat=len(seeds))
    generator = numpy.random.default_rng(0)
    return (generator.choice(seeds, len(seeds)).tolist() for _ in range(RESAMPLES))


def score_interval(runs: Mapping[int, Row], key: str) -> Interval | None:
    """The mean of a score over the seeds of a method."""
    return mean_interval({seed: row[key] for seed, row in runs.items()})


def set_score_interval(runs: Mapping[int, Row], key: str) -> Interval | None:
    """The mean over the seeds of a method of a score's mean over the sets that have it; None if none has."""
    return mean_interval(
        {seed: mean([scores.get(key) for scores in row["per_set"].values()]) for seed, row in runs.items()}
    )


def mean_interval(values: Mapping[int, float | None]) -> Interval | None:
    """The mean of one value per seed."""
    return bootstrap(lambda seeds: mean([values[seed] for seed in seeds]), list(values))


def improvement_interval(
    runs: Mapping[int, Row],
    plain: Mapping[int, Row],
    perspectives: Sequence[Perspective] = PERSPECTIVES,
    error_rate: float = ERROR_RATE,
) -> Interval | None:
    """Relative improvement over plain of the mean scores, averaged over perspectives; seeds that both have count."""

    def statistic(seeds: Sequence[int]) -> float | None:
        scores = mean_scores([runs[seed] for seed in seeds])
        base = mean_scores([plain[seed] for seed in seeds])
        return mean([improved(scores[each.key], base[each.key], each.best) for each in perspectives])

    both = [seed for seed in runs if seed in plain]
    return bootstrap(statistic, both, error_rate) if both else None


def mean_scores(runs: Sequence[Row]) -> dict[str, float | None]:
    return {each.key: mean([run[each.key] for run in runs]) for each in PERSPECTIVES}


def improved(score: float | None, plain: float | None, best: float) -> float | None:
    return None if score is None or plain is None else relative_improvement(score, plain, best)
