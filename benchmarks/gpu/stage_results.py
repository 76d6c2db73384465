"""What the stages found out, and how it is kept: readable at any moment, whatever is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .plan import Stage

JSON, TABLE, LOG = "results.json", "results.md", "log.txt"
ROWS = "running.jsonl"  # of the stage that runs: one row a line, as it finds them

Row = dict[str, Any]  # "what", and "figures", "absent" or "wrong"; see report.Report

# What can become of a stage. "pending" and "running" are left only where the command was killed.
PENDING, RUNNING, DONE, ABSENT = "pending", "running", "done", "absent"
FAILED, TIMED_OUT, SKIPPED, INTERRUPTED = "failed", "timed out", "skipped", "interrupted"
BAD = (FAILED, TIMED_OUT, INTERRUPTED)


@dataclass
class StageResult:
    """What became of one stage.

    Attributes:
        name: of the stage.
        status: one of the words above.
        reason: why it is no other; empty for a stage that is done.
        seconds: that it took.
        limit: seconds that it could have taken; None: it was not started.
        rows: what it found, in its order.
    """

    name: str
    status: str = PENDING
    reason: str = ""
    seconds: float = 0.0
    limit: float | None = None
    rows: list[Row] = field(default_factory=list)


@dataclass
class Results:
    """All stages of one run of the command.

    Attributes:
        started: date and time, UTC.
        dry_run: whether the interpreter stood in the place of the GPU.
        budget: seconds for everything.
        seconds: that everything took so far.
    """

    started: str
    dry_run: bool
    budget: float
    seconds: float
    stages: list[StageResult]

    @classmethod
    def of(cls, stages: Sequence[Stage], started: str, dry_run: bool, budget: float) -> Results:
        """Before the first stage."""
        return cls(started, dry_run, budget, 0.0, [StageResult(stage.name) for stage in stages])

    def write(self, folder: Path) -> None:
        """Replace the results in ``folder`` at once, so that no reader ever finds half of them."""
        replace(folder / JSON, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")


def replace(file: Path, text: str) -> None:
    """Write a file beside ``file`` and put it in its place."""
    beside = file.with_name(f".{file.name}.new")
    beside.write_text(text)
    os.replace(beside, file)


def read_rows(file: Path) -> list[Row]:
    """The rows that a stage has written; the last line may be half written, by a stage that was killed."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "what" in row:
            rows.append(row)
    return rows
