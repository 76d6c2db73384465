"""The table that a study prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from roast_optim.evaluation.scores import PERSPECTIVES
from roast_optim.evaluation.tables import percent

from .names import title_of
from .summary import MethodSummary

CAPTION = (
    "In percent; of ECE less is better, of all else more. "
    "Over plain: how much of plain's distance to the best value (100, for ECE 0) is closed."
)


def results_table(title: str, summaries: Sequence[MethodSummary]) -> Table:
    """Each method's mean scores in percent, and for all but plain its relative improvement."""
    table = Table(title=title, caption=CAPTION, box=SIMPLE_HEAD)
    table.add_column("Method", overflow="fold")
    for perspective in PERSPECTIVES:
        table.add_column(perspective.title, justify="right", no_wrap=True)
    table.add_column("Seconds", justify="right", no_wrap=True)
    for each in summaries:
        table.add_row(
            title_of(each.method), *(percent(each.scores[one.key]) for one in PERSPECTIVES), f"{each.seconds:.0f}"
        )
        if each.method != "plain" and each.average_improvement is not None:
            table.add_row("  over plain", *(signed(each.improvement[one.key]) for one in PERSPECTIVES), "")
            table.add_row("  on average", signed(each.average_improvement))
    return table


def signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}%"
