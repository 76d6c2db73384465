"""A look at the final runs of a regime, at a number of seeds that was fixed beforehand (PROTOCOL.md, looks.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.files import atomic_write
from roast_optim.evaluation.scores import Perspective, mean
from roast_optim.evaluation.tables import percent

from .looks import levels
from .markdown import (
    Runs,
    distance_table,
    groups_table,
    header,
    improvement_table,
    improvements,
    mean_seconds,
    row_of,
    scores_table,
    sets_table,
    worst_group,
)
from .names import title_of
from .protocol import Protocol
from .report import by_average
from .runs import Row
from .tuning import LEARNED

PLAIN = "plain"
CALIBRATION = (
    Perspective("ece_top_label", "ECE, no temperature", 0.0),
    Perspective("ece_validation_temperature", "ECE, one temperature from validation data", 0.0),
    Perspective("ece", "ECE, temperature by folds", 0.0),
)


def look(protocol: Protocol, names: Sequence[str] | None, seeds: int) -> Path:
    """Write what the runs with the first so many seeds say; returns the file.

    Raises:
        UserError: no look was planned at this number of seeds, or runs are missing.
    """
    looks = protocol.regime.looks
    if seeds not in looks:
        raise UserError(f"--seeds {seeds}: the protocol looks at {', '.join(map(str, looks))} seeds and at no others")
    names = list(names or (*protocol.regime.trials, *protocol.regime.others))
    runs = {name: protocol.final_runs(name, seeds) for name in names}
    missing = [name for name, found in runs.items() if len(found) < seeds]
    if PLAIN not in names or missing:
        raise UserError(f"runs with {seeds} seeds are missing of: {', '.join(missing) or PLAIN}")
    path = protocol.store.path.parent / f"look-{seeds}.md"
    with atomic_write(path) as file:
        file.write("\n".join(sections(protocol, runs, seeds)).encode())
    return path


def sections(protocol: Protocol, runs: Runs, seeds: int) -> Iterator[str]:
    """Markdown."""
    looks = protocol.regime.looks
    error_rate = levels(looks)[looks.index(seeds)]
    others = {name: found for name, found in runs.items() if name != PLAIN}
    gains = by_average(improvements(others, runs[PLAIN], error_rate))
    yield f"# {seeds} seeds\n"
    yield f"Intervals of {100 * (1 - error_rate):.2f}%, as the protocol has it for a look at {seeds} seeds.\n"
    yield f"Relative improvement over plain fine-tuning at its best setting ({told(protocol, PLAIN)}), by average.\n"
    yield improvement_table(gains)
    for name in (each for each in runs if each.startswith(f"{PLAIN} ")):
        yield f"\nThe same over {title_of(name)} ({told(protocol, name)}).\n"
        rest = {other: found for other, found in runs.items() if other != name}
        yield improvement_table(by_average(improvements(rest, runs[name], error_rate)))
    yield "\nScores, with intervals of 95%. Seconds depend on what else the machine did.\n"
    yield scores_table(runs)
    yield "\nSettings, accuracy by label, worst group, calibration, and what had hardly learned.\n"
    yield details_table(protocol, runs)
    yield "\nAccuracy per set, and of the worst group.\n"
    yield sets_table(runs)
    yield "\nAccuracy by group.\n"
    yield groups_table(runs)
    yield "\nDistance from the pre-trained weights after each epoch.\n"
    yield distance_table(runs)
    yield ""


def told(protocol: Protocol, name: str) -> str:
    """The options of what runs under a name."""
    trial = protocol.setting(name)
    assert trial is not None
    options = [f"{key} {value}" for key, value in trial.options.items()]
    return ", ".join([*options, *([f"{trial.epochs} epochs"] if trial.epochs else [])]) or "defaults"


def details_table(protocol: Protocol, runs: Runs) -> str:
    """Methods by what a mean over five columns hides."""
    labels = list(dict.fromkeys(label for rows in runs.values() for row in rows.values() for label in by_label(row)))
    best = max(mean_accuracy(rows) for rows in runs.values())
    titles = [each.title for each in CALIBRATION]
    lines = [header("Method", "Settings", *(f"Accuracy, {each}" for each in labels), "Worst group", *titles, "Cost")]
    for name, rows in runs.items():
        accuracies = [percent(mean([by_label(row).get(label) for row in rows.values()])) for label in labels]
        errors = [percent(mean([over_sets(row, each.key) for row in rows.values()])) for each in CALIBRATION]
        cost = f"{mean_seconds(rows) / mean_seconds(runs[PLAIN]):.2f}"
        mark = " (hardly learned)" if mean_accuracy(rows) < best - LEARNED else ""
        settings = told(protocol, name)
        lines.append(row_of(title_of(name) + mark, settings, *accuracies, percent(worst_group(rows)), *errors, cost))
    return "\n".join(lines)


def by_label(row: Row) -> dict[str, float]:
    """Accuracy of each label on the in-distribution test."""
    inside: dict[str, Any] = next(each for each in row["per_set"].values() if each["role"] == "in_distribution")
    return dict(inside["groups"]["label"])


def over_sets(row: Row, key: str) -> float | None:
    """The mean of a score over the sets that have it."""
    return mean([scores.get(key) for scores in row["per_set"].values()])


def mean_accuracy(rows: Mapping[int, Row]) -> float:
    return sum(float(row["acc_in"]) for row in rows.values()) / len(rows)
