"""What holds the step back: the hardware's own counters, read by Nsight Compute."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable

from ..report import Report, run_stage
from ..steps import DTYPES
from ..tools import find, last_lines, run

TOOL = "ncu"
KERNEL = "roast_adamw"
METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM_percent",
    "dram__bytes_read.sum": "read",
    "dram__bytes_write.sum": "written",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps_percent",
    "launch__registers_per_thread": "registers",
}


def counters(report: Report) -> None:
    """The second step of each dtype: the first one loads the kernel."""
    tool = find(TOOL)
    if tool is None:
        for dtype in DTYPES:
            report.absent(dtype, f"{TOOL} is not found")
        return
    command = [
        tool, "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none",
        "--kernel-name", f"regex:{KERNEL}", "--metrics", ",".join(METRICS),
        sys.executable, "-m", "benchmarks.gpu.two_steps", *(["--dry-run"] if report.dry_run else []),
    ]  # fmt: skip
    code, output, errors = run(command, os.environ)
    launches = read(output.splitlines())
    if len(launches) != 2 * len(DTYPES):
        said = last_lines(f"{output}\n{errors}")
        report.wrong(TOOL, f"saw {len(launches)} launches of {KERNEL}, not two of each dtype; status {code}: {said}")
        return
    for dtype, figures in zip(DTYPES, launches[1::2], strict=True):
        report.measured(dtype, **figures)


def read(lines: Iterable[str]) -> list[dict[str, float | int | str]]:
    """Figures of each launch from the table of all metrics, whose second line has the units."""
    table = [line for line in lines if line.startswith('"')]
    launches = []
    for row in csv.DictReader(table):
        if not row.get("ID"):  # the line of units
            continue
        values = {name: row[metric].replace(",", "") for metric, name in METRICS.items() if row.get(metric)}
        launches.append({name: _number(value) for name, value in values.items()})
    return [_named(launch) for launch in launches]


def _named(launch: dict[str, float | str]) -> dict[str, float | int | str]:
    """With the units in the names: nanoseconds and bytes come as they are counted."""
    named: dict[str, float | int | str] = {}
    for name, value in launch.items():
        if isinstance(value, float) and name == "time":
            named["ms"] = value / 1e6
        elif isinstance(value, float) and name in ("read", "written"):
            named[f"GB_{name}"] = value / 1e9
        else:
            named[name] = value
    return named


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    run_stage(counters)
