"""Everything that this project wants to know of a GPU, in one command.

python -m benchmarks.gpu --output DIR [--budget SECONDS] [--dry-run] [--only STAGE ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .plan import STAGES
from .runner import Runner
from .stage_results import BAD
from .table import table

BUDGET = 480.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages and print the table; 1 if a stage failed, was ended at its limit or was interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="results.json, results.md, log.txt")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help=f"for all; {BUDGET:g}")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: tiny sizes in triton's interpreter")
    parser.add_argument(
        "--only", nargs="+", metavar="STAGE", choices=[stage.name for stage in STAGES], help="some stages alone"
    )
    options = parser.parse_args(arguments)
    if options.budget <= 0:
        parser.error(f"--budget {options.budget:g} must be a positive number of seconds")
    chosen = [stage for stage in STAGES if options.only is None or stage.name in options.only]
    results = Runner(chosen, options.output, budget=options.budget, dry_run=options.dry_run).run()
    print(f"\n{table(results)}", end="", flush=True)
    return 1 if any(stage.status in BAD for stage in results.stages) else 0


if __name__ == "__main__":
    sys.exit(main())
