"""The choice of hyper-parameters: what was tried on the validation set, and what came out best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from roast_optim.evaluation.tables import percent

from .names import title_of
from .runs import Row, settings_of

LEARNED = 0.03  # of accuracy


def validation_score(row: Row) -> float:
    """The mean of the accuracy on the validation rows and, where they were attacked, of that under attack."""
    accuracies = [row["acc_in"], *([] if row["acc_adv"] is None else [row["acc_adv"]])]
    return float(sum(accuracies) / len(accuracies))


def best_trials(rows: Sequence[Row]) -> dict[str, Row]:
    """Method -> its tuning run with the largest validation score; of equal ones the first.

    A model that has hardly learned its task is hard to attack: a trial whose accuracy is more than LEARNED below the
    method's largest is not chosen.
    """
    trials: dict[str, list[Row]] = {}
    for row in rows:
        trials.setdefault(row["method"], []).append(row)
    best = {}
    for method, mine in trials.items():
        floor = max(row["acc_in"] for row in mine) - LEARNED
        best[method] = max((row for row in mine if row["acc_in"] >= floor), key=validation_score)
    return best


def tuning_table(rows: Sequence[Row]) -> str:
    """Markdown: every trial with what its settings have of their own, the best of each method in bold."""
    best = best_trials(rows)
    varying = varying_settings(rows)
    lines = ["| Method | Settings | Accuracy | Under attack | Mean |", "| --- | --- | ---: | ---: | ---: |"]
    for method in best:
        trials = [row for row in rows if row["method"] == method]
        for row in sorted(trials, key=validation_score, reverse=True):
            settings = ", ".join(f"{name} {value}" for name, value in settings_of(row).items() if name in varying)
            mean = percent(validation_score(row))
            if row is best[method]:
                mean = f"**{mean}**"
            accuracies = f"{percent(row['acc_in'])} | {percent(row['acc_adv'])}"
            lines.append(f"| {title_of(method)} | {settings} | {accuracies} | {mean} |")
    return "\n".join(lines)


def varying_settings(rows: Sequence[Row]) -> set[str]:
    """The names of settings, rows and epochs among them, that are not the same in all runs that have them."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in settings_of(row).items():
            values.setdefault(name, []).append(value)
    return {name for name, mine in values.items() if any(value != mine[0] for value in mine)}
