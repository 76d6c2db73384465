"""The project's own tests of kernels, conformity and random trainings, with their tensors on the GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..outcomes import ERROR, FAILED, FILE_VARIABLE, OUTCOMES, PASSED
from ..report import Report, run_stage
from ..runner import ROOT

DEVICE_VARIABLE = "ROAST_TEST_DEVICE"
# What places its tensors on the device of the tests, the longest first.
TESTS = (
    "tests/roast_optim/test_random_training.py",
    "tests/kernels/triton",
    "tests/kernels/test_backends.py",
    "tests/kernels/test_stochastic_rounding.py",
    "tests/kernels/test_gradient_factor.py",
    "tests/roast_optim/test_conformity.py",
)
TESTS_IN_DRY_RUN = ("tests/kernels/triton/test_optimizer.py", "-k", "measured or checkpoint")
PROCESSES, PROCESSES_IN_DRY_RUN = 8, 1
FOR_THE_ROWS = 3.0  # seconds before the limit at which tests that are not done are killed
NAMED = 12  # failures that get a row of their own

Outcome = dict[str, str]  # "test", "outcome" and "reason"


def kernel_tests(report: Report) -> None:
    """Run them, and count what became of each, also of a run that does not come to its end."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes.jsonl"
        code = run_pytest(
            TESTS_IN_DRY_RUN if report.dry_run else TESTS,
            processes=PROCESSES_IN_DRY_RUN if report.dry_run else PROCESSES,
            device=report.device.type,
            outcomes=file,
            seconds=report.seconds_left() - FOR_THE_ROWS,
        )
        lines = file.read_text().splitlines() if file.exists() else []
    written = [json.loads(line) for line in lines]
    say(report, [each for each in written if "outcome" in each], code)
    say_units(report, [each["units"] for each in written if "units" in each])


def run_pytest(tests: Sequence[str], *, processes: int, device: str, outcomes: Path, seconds: float) -> int | None:
    """Exit status of pytest, whose output is this program's; None: it was killed."""
    command = [
        sys.executable, "-m", "pytest", "-q", "-n", str(processes), "-p", "no:cacheprovider",
        "-p", "benchmarks.gpu.outcomes", "-W", "ignore::RuntimeWarning", "--tb=short", *tests,
    ]  # fmt: skip
    environment = {**os.environ, DEVICE_VARIABLE: device, FILE_VARIABLE: str(outcomes)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        return process.wait(min(max(seconds, 0.0), threading.TIMEOUT_MAX))
    except subprocess.TimeoutExpired:
        process.kill()  # the workers end with this stage
        process.wait()
        return None


def say(report: Report, outcomes: Sequence[Outcome], code: int | None) -> None:
    """Rows: the counts first, then what failed, and whether pytest came to its end."""
    counts = Counter(each["outcome"] for each in outcomes)
    figures = {name: counts[name] for name in OUTCOMES}
    bad = [each for each in outcomes if each["outcome"] in (FAILED, ERROR)]
    if bad:
        report.wrong("tests", f"{len(bad)} failed", **figures)
    elif not counts[PASSED]:
        report.wrong("tests", "none passed", **figures)
    else:
        report.measured("tests", **figures)
    for each in bad[:NAMED]:
        report.wrong(each["test"].removeprefix("tests/"), f"{each['outcome']}: {each['reason'][:300]}")
    if code is None:
        report.wrong("end of the tests", "the tests did not come to their end in time")
    elif code not in (0, 1):
        report.wrong("end of the tests", f"pytest ended with status {code}; its last words are in the log")


def say_units(report: Report, units: Sequence[Mapping[str, float]]) -> None:
    """A row: the largest differences from the reference by name, in units of the last place."""
    names = sorted({name for each in units for name in each})
    if names:
        largest = {name.replace(", ", "_"): max(each.get(name, 0.0) for each in units) for name in names}
        report.measured("units of the last place", **largest)


if __name__ == "__main__":
    run_stage(kernel_tests)
