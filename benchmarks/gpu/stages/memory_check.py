"""compute-sanitizer's memcheck over one small case of every variant of every kernel."""

from __future__ import annotations

import os
import re
import sys

from ..report import Report, run_stage
from ..tools import find, last_lines, run

TOOL = "compute-sanitizer"
WHAT = "memcheck"
_ERRORS = re.compile(r"ERROR SUMMARY: (\d+) error")
_CASES = re.compile(r"^(\d+) cases$", re.MULTILINE)
_ERROR_LINE = re.compile(r"=========\s+(Invalid|Misaligned|Program hit|Out-of-range)(.*)")


def memory_check(report: Report) -> None:
    """Every tensor is an allocation of its own, so that an access beyond its end is seen."""
    tool = find(TOOL)
    if tool is None:
        report.absent(WHAT, f"{TOOL} is not found")
        return
    command = [tool, "--tool", "memcheck", "--target-processes", "application-only", "--print-limit", "20"]
    program = [sys.executable, "-m", "benchmarks.gpu.cases", *(["--dry-run"] if report.dry_run else [])]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    code, output, errors = run([*command, *program], environment)
    print(output, errors, sep="\n", flush=True)
    judge(report, code, output + "\n" + errors)


def judge(report: Report, code: int, text: str) -> None:
    """From what the tool printed; a run that it could not watch is no run without errors."""
    summary, cases = _ERRORS.search(text), _CASES.search(text)
    if summary is None or cases is None:
        report.wrong(WHAT, f"{TOOL} ended with status {code} and no result: {last_lines(text)}")
        return
    if int(summary[1]):
        found = "; ".join(dict.fromkeys("".join(match).strip() for match in _ERROR_LINE.findall(text)))
        report.wrong(WHAT, f"{summary[1]} errors: {found}", cases=int(cases[1]))
        return
    report.measured(WHAT, errors=0, cases=int(cases[1]))


if __name__ == "__main__":
    run_stage(memory_check)
