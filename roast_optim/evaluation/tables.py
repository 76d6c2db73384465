"""The tables that an evaluation prints: models side by side, and every set."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .scores import PERSPECTIVES, AnomalyScores, Evaluation, LabelledScores

COLUMNS = (
    "In percent; of ECE less is better, of all else more. ECE: mean over the labelled sets, with a temperature chosen "
    "by cross-validation."
)
SETS = (
    "Score: accuracy, with half the width of its 95% interval over other rows of the same kind; of anomalies AUROC. "
    "ECE: how far the model's own confidences are off, without a temperature."
)


def percent(value: float | None) -> str:
    """A fraction as a percentage; "-" where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def columns_table(title: str, evaluations: Mapping[str, Evaluation]) -> Table:
    """The five columns of each model."""
    table = Table(title=title, caption=COLUMNS, box=SIMPLE_HEAD)
    table.add_column("Model", overflow="fold")
    for each in PERSPECTIVES:
        table.add_column(each.title, justify="right", no_wrap=True)
    for name, evaluation in evaluations.items():
        table.add_row(name, *(percent(getattr(evaluation, each.key)) for each in PERSPECTIVES))
    return table


def sets_table(title: str, evaluations: Mapping[str, Evaluation]) -> Table:
    """Every set, with a line per model: a score and a calibration error."""
    table = Table(title=title, caption=SETS, box=SIMPLE_HEAD)
    table.add_column("Set", overflow="fold")
    table.add_column("Role", no_wrap=True)
    table.add_column("Rows", justify="right", no_wrap=True)
    table.add_column("Model", overflow="fold")
    table.add_column("Score", justify="right", no_wrap=True)
    table.add_column("ECE", justify="right", no_wrap=True)
    for name, any_model in next(iter(evaluations.values())).per_set.items():
        what = (name, any_model.role.replace("_", "-"), f"{any_model.rows:,}")
        for model, evaluation in evaluations.items():
            table.add_row(*what, model, *cells_of(evaluation.per_set[name]))
            what = ("", "", "")
    return table


def cells_of(scores: LabelledScores | AnomalyScores) -> tuple[str, str]:
    """Score and calibration error."""
    if isinstance(scores, AnomalyScores):
        return percent(scores.auroc), "-"
    reach = accuracy_margin(scores.accuracy, scores.rows)
    return f"{percent(scores.accuracy)} ±{percent(reach)}", percent(scores.ece_top_label)


def accuracy_margin(accuracy: float, rows: int) -> float:
    """Half the width of the 95% interval of a share (Agresti and Coull, The American Statistician 1998)."""
    more = rows + 4
    share = (accuracy * rows + 2) / more
    return float(1.96 * (share * (1 - share) / more) ** 0.5)
