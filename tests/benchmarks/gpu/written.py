"""What a stage has written."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.gpu.report import Report


def rows(report: Report) -> list[dict[str, Any]]:
    """Its rows, in their order."""
    return [json.loads(line) for line in report.rows.read_text().splitlines()]
