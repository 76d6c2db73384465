"""Recorded runs of the study, as the tables of README.md and docs/ compare them: which runs, and how a gain is told.

What the pages say of a method is over plain fine-tuning at its best learning rate, on the seeds that both have.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from roast_optim.evaluation.scores import PERSPECTIVES
from roast_optim.evaluation.tables import percent

from .markdown import header, improvements, row_of
from .names import title_of
from .runs import Row, read_runs
from .summary import Interval, improvement_interval, score_interval

RESULTS = Path(__file__).parent / "results"
Runs = Mapping[int, Row]  # of one method with one setting, by seed

COLUMNS = ("accuracy", "shifted texts", "attacked texts", "calibration", "anomalies")
BEST_RATE, OTHER_RATE = 5e-5, 1e-4
SEEDS = (0, 1, 2)  # that all methods have
TWICE = "plain fine-tuning at twice the rate"
LENGTHS = {"376 steps": "entailment", "750 steps": "entailment-long"}


@cache
def recorded(folder: str) -> list[Row]:
    """The final runs of a folder."""
    return [row for row in read_runs(RESULTS / folder / "runs.jsonl") if row["purpose"] == "final"]


def runs(method: str, folder: str = "sentiment", **settings: float) -> Runs:
    """The final runs of a method with these settings, by seed.

    Raises:
        LookupError: there are none.
    """
    found = {
        row["seed"]: row
        for row in recorded(folder)
        if row["method"] == method and all(row["options"].get(key) == value for key, value in settings.items())
    }
    if not found:
        raise LookupError(f"{folder} has no final run of {method} with {settings}")
    return found


def of_common_seeds(found: Runs) -> Runs:
    return {seed: found[seed] for seed in SEEDS}


def methods() -> dict[str, Runs]:
    """All methods of the sentiment study on the seeds that all have, plain fine-tuning at the other rate among them."""
    names = (
        "smart", "freelb", "lp_ft", "wconsol", "advembed", "r3f", "child_tuning_d", "child_tuning_f", "word_dropout",
        "selective",
    )  # fmt: skip
    found = {title_of(name): runs(name) for name in names}
    found[title_of("roast")] = runs("roast", step_size=0.1)
    found["RoAST, shorter step"] = runs("roast", step_size=0.03)
    found["RoAST at the lower rate"] = runs("roast", "sentiment-learning-rate", learning_rate=BEST_RATE)
    found[TWICE] = other_plain()
    return {name: of_common_seeds(each) for name, each in found.items()}


def best_plain() -> Runs:
    """Plain fine-tuning at its best learning rate."""
    return runs("plain", "sentiment-learning-rate", learning_rate=BEST_RATE)


def other_plain() -> Runs:
    """The same at the rate that its trials chose, twice as high."""
    return runs("plain", learning_rate=OTHER_RATE)


def five(folder: str) -> dict[str, Runs]:
    """RoAST, its two parts and the pull, each with the setting that its trials chose."""
    chosen = {"step_size": 0.1} if folder == "sentiment" else {}
    return {
        title_of("roast"): runs("roast", folder, **chosen),
        **{title_of(name): runs(name, folder) for name in ("advembed", "selective", "wconsol")},
    }


def on_five_seeds() -> dict[str, Runs]:
    found = {name: runs(name) for name in ("plain", "advembed", "selective", "wconsol")}
    return {**found, "roast": runs("roast", step_size=0.1)}


SIX = ("smart", "freelb", "wconsol", "roast", "advembed")  # besides plain fine-tuning


# ------------------------------------------------------------------------------------------------------------- cells


def gain(interval: Interval | None) -> str:
    """Such as +4.0% (+1.4 to +6.5); bold if the interval excludes zero."""
    if interval is None:
        return "-"
    value = f"{100 * interval.value:+.1f}%"
    if interval.low is None or interval.high is None:
        return value
    value = f"**{value}**" if interval.low > 0 or interval.high < 0 else value
    return f"{value} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def value_of(interval: Interval | None) -> str:
    """The same without the interval."""
    return gain(interval).partition(" (")[0]


def score(interval: Interval | None, with_interval: bool = False) -> str:
    if interval is None:
        return "-"
    reach = ""
    if with_interval and interval.low is not None and interval.high is not None:
        reach = f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    return percent(interval.value) + reach


def gains_table(found: Mapping[str, Runs], base: Runs, lead: str = "method") -> str:
    """Methods by columns, the best average first: relative improvement over the runs `base`."""
    each = improvements(found, base)
    order = sorted(each, key=lambda name: -(average.value if (average := each[name]["Average"]) else 0.0))
    lines = [header(lead, *COLUMNS, "average")]
    for name in order:
        columns = [value_of(each[name][one.title]) for one in PERSPECTIVES]
        lines.append(row_of(name, *columns, gain(each[name]["Average"])))
    return "\n".join(lines)


def scores_table(found: Mapping[str, Runs], base: Runs, with_intervals: bool = False) -> str:
    """Methods by columns: mean scores in percent, and the average gain over the runs `base`."""
    lines = [header("method", *COLUMNS, "average gain")]
    for name, mine in found.items():
        cells = [score(score_interval(mine, one.key), with_intervals) for one in PERSPECTIVES]
        lines.append(row_of(name, *cells, "" if mine is base else gain(improvement_interval(mine, base))))
    return "\n".join(lines)
