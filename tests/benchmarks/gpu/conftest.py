"""What the tests of the stages share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu.report import Report


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Of a stage that runs on the CPU."""
    return Report(tmp_path / "rows", seconds=100.0, dry_run=True)
