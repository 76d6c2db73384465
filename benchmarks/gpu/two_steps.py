"""Two steps of 110M parameters in each dtype, and nothing else, for a profiler to watch."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from benchmarks.kernels.workloads import make_parameters

from .report import Report, interpret
from .steps import DTYPES, optimizer_over, shapes_of


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, in triton's interpreter")
    dry_run = parser.parse_args().dry_run
    if dry_run:
        interpret()
    report = Report(Path(), math.inf, dry_run)
    for dtype in DTYPES.values():
        optimizer = optimizer_over(make_parameters(shapes_of("110M", report), report.device, dtype))
        for _ in range(2):
            optimizer.step()
    if not dry_run:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
