"""The command `python -m benchmarks.robustness`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich.console import Console

from .arguments import add_data, not_negative, positive
from .data import TASKS
from .errors import UserError, tell
from .files import write_json
from .methods import METHODS
from .models import MINILM
from .pictures import reliability_diagram
from .runs import PURPOSES, Row
from .settings import PRESETS, Settings
from .study import RUNS, run_study
from .summary import summarize
from .table import results_table

RESULTS, RELIABILITY = "results.json", "reliability.png"
INTERRUPTED = 130  # what a shell reports after Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study, print its table and write its files. Returns the exit status."""
    console = Console()
    try:
        settings = read_settings(arguments)
        rows = run_study(settings, console)
        report(settings, rows, console)
    except UserError as error:
        return tell(error)
    except KeyboardInterrupt:
        console.print(f"\nStopped. Finished runs are kept in {RUNS}; without --restart they are not done again.")
        return INTERRUPTED
    return 0


def report(settings: Settings, rows: Sequence[Row], console: Console) -> None:
    summaries = summarize(rows)
    amounts = f"rows: {rows[0]['train_rows']}, epochs: {rows[0]['epochs']}, seeds: {settings.seeds}"
    title = f"{settings.task}, {Path(settings.model).name}; {amounts}"
    console.print(results_table(title, summaries))
    chosen = {**asdict(settings), "output": str(settings.output)}
    methods = {each.method: each.as_json() for each in summaries}
    write_json(settings.output / RESULTS, {"settings": chosen, "methods": methods, "runs": list(rows)})
    runs = {method: [row for row in rows if row["method"] == method] for method in methods}
    shown = {method: found for method, found in runs.items() if method in ("plain", "roast")} or runs
    reliability_diagram(settings.output / RELIABILITY, shown)
    console.print(f"Written to {settings.output}: {RESULTS}, {RELIABILITY}, {RUNS}")


def read_settings(arguments: Sequence[str] | None) -> Settings:
    """Settings from the command line; a preset replaces defaults, what is written out replaces both."""
    parser = make_parser()
    name = parser.parse_args(arguments).preset
    preset = dict(PRESETS[name]) if name else {}
    changes = preset.pop("changes", ())  # those written out are added to them, and so win
    parser.set_defaults(**preset)
    options = parser.parse_args(arguments)
    options.changes = (*changes, *options.changes)
    options.methods, options.data = tuple(options.methods), tuple(options.data)
    given = {each.name: getattr(options, each.name) for each in fields(Settings) if hasattr(options, each.name)}
    return Settings(**given)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness",
        description="Fine-tune a model with several methods and measure how robust each result is.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, help="a set of defaults")
    add("--smoke", dest="preset", action="store_const", const="smoke", help="the same as --preset smoke")
    add("--task", choices=TASKS, help="what is classified")
    add("--methods", nargs="+", metavar="METHOD", help=f"any of: {', '.join(METHODS)}")
    add("--model", metavar="PATH_OR_HUB_ID", help=f"{MINILM} (a Python package), a folder, or a name on the hub")
    add_data(parser)
    add("--train-set", metavar="NAME", help="which training set of the folder, if not its first")
    add("--purpose", choices=PURPOSES, help="tuning measures on the validation set alone")
    add("--seeds", type=positive, metavar="N", help="runs per method")
    add("--first-seed", type=not_negative, metavar="N", help="the runs' seeds count up from here")
    add("--epochs", type=positive, metavar="N", help="passes over the training rows")
    add("--train-rows", type=positive, metavar="N", help="use so many training rows; all if not given")
    add("--eval-rows", type=positive, metavar="N", help="use so many rows of each other set; all if not given")
    add("--attack-rows", type=not_negative, metavar="N", help="swap characters in so many in-distribution rows")
    add("--max-length", type=positive, metavar="N", help="tokens per text; the rest is cut off")
    add("--set", dest="changes", nargs="+", metavar="[METHOD.]KEY=VALUE", help="options of methods, or of the recipe")
    add("--output", type=Path, metavar="DIR", help="where runs.jsonl and the results go")
    add("--restart", action=argparse.BooleanOptionalAction, help="do recorded runs again; runs.jsonl is renamed")
    defaults = Settings(data=parser.get_default("data"))
    parser.set_defaults(**asdict(defaults))
    return parser


if __name__ == "__main__":
    sys.exit(main())
