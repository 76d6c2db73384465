"""The command `python -m benchmarks.robustness`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from roast_optim.evaluation.arguments import add_columns, given_columns, not_negative, positive
from roast_optim.evaluation.errors import UserError, tell
from roast_optim.evaluation.files import write_json

from .arguments import add_data
from .data import TASKS
from .methods import METHODS
from .packaged_models import MINILM
from .pictures import reliability_of_runs
from .recommendation import recommendation
from .runs import PURPOSES, Row
from .settings import PRESETS, Settings
from .sources.files import OWN_DATA, DataFiles
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
    if settings.changes:
        console.print(f"Settings: {' '.join(settings.changes)}", highlight=False, soft_wrap=True, markup=False)
    chosen = {**asdict(settings), "output": str(settings.output)}
    methods = {each.method: each.as_json() for each in summaries}
    advice = recommendation(rows) if settings.purpose == "final" else None
    results = {"settings": chosen, "methods": methods, "recommendation": advice, "runs": list(rows)}
    write_json(settings.output / RESULTS, results)
    runs = {method: [row for row in rows if row["method"] == method] for method in methods}
    shown = {method: found for method, found in runs.items() if method in ("plain", "roast")} or runs
    reliability_of_runs(settings.output / RELIABILITY, shown)
    console.print(f"Written to {settings.output}: {RESULTS}, {RELIABILITY}, {RUNS}")
    if advice:
        console.print(f"\n{advice}", markup=False, highlight=False)


def read_settings(arguments: Sequence[str] | None) -> Settings:
    """Settings from the command line; a preset replaces defaults, what is written out replaces both."""
    parser = make_parser()
    first = parser.parse_args(arguments)
    files = given_files(first)
    name = first.preset or (OWN_DATA if files else None)
    preset = dict(PRESETS[name]) if name else {}
    changes = preset.pop("changes", ())  # those written out are added to them, and so win
    parser.set_defaults(**preset)
    options = parser.parse_args(arguments)
    options.changes = (*changes, *options.changes)
    options.methods, options.data = tuple(options.methods), tuple(options.data)
    given = {each.name: getattr(options, each.name) for each in fields(Settings) if hasattr(options, each.name)}
    return Settings(**{**given, "files": files, "task": OWN_DATA if files else options.task})


def given_files(options: argparse.Namespace) -> DataFiles | None:
    """One's own files, if any is given.

    Raises:
        UserError: there are some, but not all that are needed.
    """
    own = {each.name: getattr(options, each.name) for each in fields(DataFiles)}
    given = [f"--{name.replace('_', '-')}" for name, value in own.items() if value]
    if not given:
        return None
    if lacking := [name for name in ("train", "validation", "in_distribution") if not own[name]]:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in lacking)
        raise UserError(f"{given[0]} is for one's own data, which needs {names} too")
    columns = given_columns(options)
    several = {name: tuple(own[name]) for name in ("shift", "adversarial", "anomaly")}
    return DataFiles(**{**own, **several, "text_columns": columns.texts, "label_column": columns.label})


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
    add_files(parser)
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


def add_files(parser: argparse.ArgumentParser) -> None:
    """The options that name one's own files."""
    group = parser.add_argument_group(
        "one's own data",
        "CSV, TSV, JSON Lines or Parquet files, in place of --data. Where no preset is asked for, they come with "
        f"--preset {OWN_DATA}: several methods, {PRESETS[OWN_DATA]['seeds']} seeds.",
    )
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "FILE"}
    group.add_argument("--train", metavar="FILE", help="what is trained on; its labels are the task's")
    group.add_argument("--validation", metavar="FILE", help="for one temperature, and for choosing settings")
    group.add_argument("--in-distribution", metavar="FILE", help="held-out texts like those of the training")
    group.add_argument("--shift", help="the same task elsewhere", **several)
    group.add_argument("--adversarial", help="made to fool a model", **several)
    group.add_argument("--anomaly", help="texts of no class; a .txt has one per line", **several)
    add_columns(group)


if __name__ == "__main__":
    sys.exit(main())
