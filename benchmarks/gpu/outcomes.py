"""A plugin of pytest that writes each outcome down as it comes, so that a run which hangs and is killed loses none.

Of a test that compares values with the reference it also writes the largest differences, in units of the last place.

``python -m pytest -p benchmarks.gpu.outcomes`` with the name of the file in the environment. Under pytest-xdist the
process that collects the outcomes of all workers writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.differences import UNITS

FILE_VARIABLE = "ROAST_TEST_OUTCOMES"
PASSED, FAILED, ERROR, SKIPPED, XFAILED = OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed")


def pytest_configure(config: pytest.Config) -> None:
    """Write, unless this is a worker."""
    file = os.environ.get(FILE_VARIABLE)
    if file is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Writer(Path(file)))


class _Writer:
    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of setup, call and teardown only the call counts, or what went wrong."""
        if report.failed:
            self._write(report, FAILED if report.when == "call" else ERROR)
        elif report.skipped:
            self._write(report, XFAILED if hasattr(report, "wasxfail") else SKIPPED)
        elif report.when == "call":
            self._write(report, PASSED)

        units = {name.removeprefix(UNITS): value for name, value in report.user_properties if name.startswith(UNITS)}
        if report.when == "teardown" and units:
            self._append({"units": units})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported, say."""
        if report.failed:
            self._write(report, ERROR)

    def _write(self, report: pytest.TestReport | pytest.CollectReport, outcome: str) -> None:
        self._append({"test": report.nodeid, "outcome": outcome, "reason": _reason(report) if report.failed else ""})

    def _append(self, line: Mapping[str, object]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = [line for line in str(crash.message if crash is not None else report.longrepr).splitlines() if line.strip()]
    return (lines[0] if crash is not None else lines[-1]).strip() if lines else ""
