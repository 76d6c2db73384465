"""What a stage sees: its device, its time, and a place for what it finds out."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Figure = float | int | str | list[float]


@dataclass
class Report:
    """Rows are written as they are found, so that a stage which is ended keeps what it has.

    Attributes:
        rows: the file that the command reads.
        seconds: that this stage may take, from its start.
        dry_run: whether triton's interpreter stands in the place of the GPU.
    """

    rows: Path
    seconds: float
    dry_run: bool
    any_wrong: bool = False
    _began: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """The GPU, or the CPU in a dry run."""
        return torch.device("cpu" if self.dry_run else "cuda")

    def seconds_left(self) -> float:
        """Until this stage is ended."""
        return self.seconds - (time.monotonic() - self._began)

    def measured(self, what: str, **figures: Figure) -> None:
        """A finding.

        Args:
            what: is measured, unique in the stage.
            **figures: names that end with their unit; the table shows all but lists.
        """
        bad = {name: value for name, value in figures.items() if isinstance(value, float) and not math.isfinite(value)}
        if bad:
            self.wrong(what, f"not finite: {bad}")
        else:
            self._write(what, figures=figures)

    def detail(self, what: str, **figures: Figure) -> None:
        """A finding that is too small for the table; results.json has it."""
        self._write(what, figures=figures, detail=True)

    def absent(self, what: str, reason: str) -> None:
        """What cannot be found out here, and why."""
        self._write(what, absent=reason)

    def wrong(self, what: str, reason: str, **figures: Figure) -> None:
        """What is not as promised; the stage goes on and fails in the end."""
        self.any_wrong = True
        self._write(what, wrong=reason, figures=figures)

    @contextmanager
    def going_on(self, what: str) -> Iterator[None]:
        """Let an error inside be a row, and what comes after run: too little memory for one size, say."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.wrong(what, f"{type(error).__name__}: {error}"[:500])

    def _write(self, what: str, **rest: Any) -> None:
        with self.rows.open("a") as file:
            file.write(json.dumps({"what": what, **rest}) + "\n")
        print(what, rest, flush=True)


def run_stage(stage: Callable[[Report], None], arguments: Sequence[str] | None = None) -> None:
    """The program of a stage: read its arguments, run it, exit."""
    parser = argparse.ArgumentParser(description=stage.__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="file to which a line is added per row")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which the stage is ended")
    parser.add_argument("--dry-run", action="store_true", help="triton's interpreter in the place of the GPU")
    options = parser.parse_args(arguments)
    if options.dry_run:
        interpret()
    elif not torch.cuda.is_available():
        sys.exit("torch finds no GPU: check the driver and the build of torch, or try --dry-run")
    report = Report(options.rows, options.seconds, options.dry_run)
    stage(report)
    sys.exit(1 if report.any_wrong else 0)


def interpret() -> None:
    """Let triton's interpreter run the kernels, on tensors on the CPU; before anything imports triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    from tests.interpreter import round_to_bfloat16_as_gpus_do

    round_to_bfloat16_as_gpus_do()
