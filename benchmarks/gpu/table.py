"""The results as a short Markdown page: what became of each stage, what was predicted, every row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .predictions import judged
from .stage_results import Results, Row, StageResult

LONGEST_REASON = 300  # characters in a table; results.json has the whole


def table(results: Results) -> str:
    """The page; all of it can be made at any time during the run."""
    kind = "dry run, triton's interpreter in the place of the GPU" if results.dry_run else _card(results)
    rows = [_row_cells(stage, row) for stage in results.stages for row in stage.rows if not row.get("detail")]
    return "\n\n".join(
        [
            f"{kind}; {results.started}; {results.seconds:.0f} s of a budget of {results.budget:g} s",
            markdown(("stage", "row", "found"), rows),
            markdown(("prediction", "predicted", "measured", "measured / predicted"), judged(results)),
            markdown(("stage", "status", "seconds", "why"), map(_stage_cells, results.stages)),
        ]
    ) + ("\n")


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; what would break it out of its cells is replaced."""
    safe = [[cell.replace("|", "/").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *safe])


def _card(results: Results) -> str:
    names = [
        row["figures"]["name"]
        for stage in results.stages
        for row in stage.rows
        if stage.name == "environment" and "name" in row.get("figures", {})
    ]
    return names[0] if names else "unknown card"


def _stage_cells(stage: StageResult) -> tuple[str, str, str, str]:
    reason = stage.reason if len(stage.reason) <= LONGEST_REASON else "..." + stage.reason[-LONGEST_REASON:]
    return stage.name, stage.status, f"{stage.seconds:.1f}", reason


def _row_cells(stage: StageResult, row: Row) -> tuple[str, str, str]:
    figures = ", ".join(
        f"{name.replace('_', ' ')} {_value(value)}"
        for name, value in row.get("figures", {}).items()
        if not isinstance(value, list)
    )
    found = "; ".join(
        part
        for part in (
            f"**wrong**: {row['wrong']}" if "wrong" in row else "",
            f"absent: {row['absent']}" if "absent" in row else "",
            figures,
        )
        if part
    )
    return stage.name, row["what"], found


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
