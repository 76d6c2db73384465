"""What the trials of a regime have said so far: every setting with its seeds, its columns and its score."""

from __future__ import annotations

from collections.abc import Iterator

from roast_optim.evaluation.scores import PERSPECTIVES
from roast_optim.evaluation.tables import percent

from .markdown import header, row_of
from .names import title_of
from .protocol import Protocol, mean_of
from .table import signed


def trials_table(protocol: Protocol) -> str:
    """Markdown: the settings of each method, most seeds and then best score first; the chosen one bold."""
    titles = [each.title for each in PERSPECTIVES]
    lines = [header("Method", "Settings", "Seeds", *titles, "Score")]
    for method in protocol.regime.trials:
        lines += [row_of(*cells) for cells in rows_of(protocol, method)]
    return "\n".join(lines)


def rows_of(protocol: Protocol, method: str) -> Iterator[list[str]]:
    chosen = protocol.chosen(method)
    found = []
    for trial in protocol.regime.trials[method]:
        rows = [row for seed in protocol.seeds if (row := protocol.recorded("tuning", trial, seed))]
        scores = [protocol.score(row) for row in rows if "failed" not in row]
        mean = sum(scores) / len(scores) if scores else float("-inf")
        found.append((len(scores), mean, trial, rows))
    for seeds, mean, trial, rows in sorted(found, key=lambda each: each[:2], reverse=True):
        settings = ", ".join(f"{key} {value}" for key, value in trial.options.items())
        columns = [percent(mean_of(rows, each.key)) if rows else "-" for each in PERSPECTIVES]
        score = signed(mean) if seeds else ("diverged" if rows else "-")
        yield [title_of(method), settings, str(len(rows)), *columns, f"**{score}**" if trial is chosen else score]
