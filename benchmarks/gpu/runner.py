"""Runs the stages one after the other, each in a process of its own, and survives whatever they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from .plan import Stage
from .stage_results import (
    ABSENT,
    DONE,
    FAILED,
    INTERRUPTED,
    LOG,
    PENDING,
    ROWS,
    RUNNING,
    SKIPPED,
    TABLE,
    TIMED_OUT,
    Results,
    Row,
    StageResult,
    read_rows,
    replace,
)
from .table import table

ROOT = Path(__file__).parents[2]
LEAST = 8.0  # seconds: what is less is not enough to import torch and find anything out
FOR_ENDING = 2.0  # seconds of the budget that are kept for the end of the last stage and the table
LAST_LINES = 12


class InterruptedRunError(Exception):
    """The command itself was told to end."""


class Runner:
    """One run of the command.

    Args:
        stages: in their order.
        folder: where results, table and log go; made if it is not there.
        budget: seconds for everything.
        dry_run: whether triton's interpreter stands in the place of the GPU.
    """

    def __init__(self, stages: Sequence[Stage], folder: Path, *, budget: float, dry_run: bool = False) -> None:
        self._stages = stages
        self._folder = folder
        self._dry_run = dry_run
        self._began = time.monotonic()
        self._budget = budget
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.results = Results.of(stages, now, dry_run, budget)

    def run(self) -> Results:
        """Run all stages; what they found stands in the folder after each of them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / LOG).write_text("")
        with _termination_raises():
            try:
                for stage, result in zip(self._stages, self.results.stages, strict=True):
                    self._run(stage, result)
                    print(f"{result.status:>12}  {result.seconds:6.1f} s  {stage.name}  {result.reason}", flush=True)
            except (InterruptedRunError, KeyboardInterrupt):
                for result in self.results.stages:
                    if result.status == PENDING:
                        result.status, result.reason = SKIPPED, "the command was interrupted before"
        self._write()
        return self.results

    def _left(self) -> float:
        return self._budget - (time.monotonic() - self._began) - FOR_ENDING

    def _run(self, stage: Stage, result: StageResult) -> None:
        own_limit = stage.limit_in(self._dry_run)
        limit = min(own_limit, self._left())
        if limit < min(LEAST, own_limit):
            result.status, result.reason = SKIPPED, f"the budget of {self._budget:g} s is used up"
            self._write()
            return
        result.status, result.limit = RUNNING, round(limit, 1)
        rows = self._folder / ROWS
        rows.unlink(missing_ok=True)
        self._write()
        began = time.monotonic()
        try:
            code, output = self._process(stage, rows, limit)
            shortened = f", all that the budget left of {own_limit:g}" if limit < own_limit else ""
            result.status, result.reason = _judged(code, read_rows(rows), output, f"{limit:.0f} s{shortened}")
        except BaseException:
            result.status, result.reason = INTERRUPTED, "the command was told to end"
            raise
        finally:
            result.rows = read_rows(rows)
            rows.unlink(missing_ok=True)
            result.seconds = round(time.monotonic() - began, 1)
            self._write()

    def _process(self, stage: Stage, rows: Path, limit: float) -> tuple[int | None, str]:
        """Exit status (None: ended at the limit) and output of a stage, none of whose processes is left behind."""
        command = [sys.executable, *stage.program, "--rows", str(rows.resolve()), "--seconds", f"{limit:.1f}"]
        with (self._folder / LOG).open("a") as log:
            print(f"\n===== {stage.name}: {' '.join(command[1:])}", file=log, flush=True)
            start = log.tell()
            # A file and no pipe: a grandchild that lives on would keep a pipe open.
            process = subprocess.Popen(
                [*command, *(["--dry-run"] if self._dry_run else [])],
                cwd=ROOT,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end_group(process)
        with (self._folder / LOG).open(errors="replace") as log:
            log.seek(start)
            return code, log.read()

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environment.pop("TRITON_INTERPRET", None)
        if self._dry_run:
            environment["TRITON_INTERPRET"] = "1"
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return environment

    def _write(self) -> None:
        self.results.seconds = round(time.monotonic() - self._began, 1)
        self.results.write(self._folder)
        replace(self._folder / TABLE, table(self.results))


def _judged(code: int | None, rows: list[Row], output: str, limit: str) -> tuple[str, str]:
    """Status of a stage that has ended, and the reason."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    last = "\n".join(lines[-LAST_LINES:]) or "it printed nothing"
    if code is None:
        return TIMED_OUT, f"ended after {limit}"
    wrong = [f"{row['what']}: {row['wrong']}" for row in rows if "wrong" in row]
    if wrong:
        return FAILED, "\n".join(wrong)
    if code != 0:
        return FAILED, f"exit status {code}: {last}"
    if not rows:
        return FAILED, f"it reported nothing: {last}"
    if all("absent" in row for row in rows):
        return ABSENT, "; ".join(dict.fromkeys(str(row["absent"]) for row in rows))
    return DONE, ""


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End every process of the stage's group; also those that the stage left behind when it ended by itself."""
    with suppress(ProcessLookupError, PermissionError):  # none is left, which macOS tells by the latter
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:  # it hangs inside of the driver; the next stage will say what that means
        print(f"process {process.pid} cannot be ended", flush=True)
    end = time.monotonic() + 1.0  # the others are ended too, which takes a moment
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < end:
            os.killpg(process.pid, 0)
            time.sleep(0.01)


@contextmanager
def _termination_raises() -> Iterator[None]:
    """Let SIGTERM, by which a machine takes its time back, end the run in the way of Ctrl-C."""

    def raise_interrupted(*_: object) -> None:
        raise InterruptedRunError

    before = signal.signal(signal.SIGTERM, raise_interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
