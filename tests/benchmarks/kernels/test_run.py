"""Every benchmark, from end to end, on next to nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kernels.report import answers
from benchmarks.kernels.targets import TARGETS, Target

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of all benchmarks."""
    file = tmp_path_factory.mktemp("results") / "tiny.json"
    benchmarks = sorted(map(str, (ROOT / "benchmarks" / "kernels").glob("bench_*.py")))
    # pytest-benchmark measures nothing in a worker of pytest-xdist, which it knows by the environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", *benchmarks, "--tiny", f"--benchmark-json={file}", "--benchmark-quiet"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [benchmark["extra_info"] for benchmark in json.loads(file.read_text())["benchmarks"]]


def test_every_row_has_a_figure_or_a_reason(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert {"what", "candidate", "device"} <= set(row)
        assert {"seconds", "extra_bytes", "not_measured"} & set(row), row


def test_the_reference_is_measured(rows: list[dict[str, Any]]) -> None:
    measured = {row["what"] for row in rows if row["candidate"] == "reference" and "not_measured" not in row}
    assert {"step, 25M", "refresh, 110M", "extra memory of a step, 25M"} <= measured


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.what}, {target.candidate}")
def test_every_target_names_a_row(rows: list[dict[str, Any]], target: Target) -> None:
    assert answers(target, rows)
