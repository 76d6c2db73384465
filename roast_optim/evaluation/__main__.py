"""The command `python -m roast_optim.evaluation`: how robust are models that exist, measured on files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from .arguments import add_columns, given_columns, not_negative, positive
from .classifier import check_exclusive_labels, label_names_of, load_classifier, load_config
from .columns import FileSet
from .errors import UserError, tell
from .files import write_json
from .labels import LabelNumbers, unnamed
from .measure import evaluate
from .pictures import reliability_diagram
from .progress import ProgressBar
from .scores import Evaluation
from .sets import Role, TextSet
from .tables import columns_table, sets_table
from .text_files import read_sets, short_names

RESULTS, RELIABILITY = "evaluation.json", "reliability.png"
INTERRUPTED = 130  # what a shell reports after Ctrl-C


@dataclass(frozen=True)
class Subject:
    """A model to be measured: what it is called, where it is, its labels, and the sets with its numbers for them."""

    name: str
    path: str
    labels: tuple[str, ...]
    sets: list[TextSet]


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate models, print tables and write files. Returns the exit status."""
    options = make_parser().parse_args(arguments)
    console = Console()
    try:
        report(options, measure(options, console), console)
    except UserError as error:
        return tell(error)
    except KeyboardInterrupt:
        console.print("\nStopped; nothing was written.")
        return INTERRUPTED
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m roast_optim.evaluation",
        description="Measures on files how robust classifiers of texts are, and compares them: accuracy "
        "in distribution, on shifted and on adversarial texts, calibration, and whether strange texts are noticed.",
        epilog="Files: .csv, .tsv, .jsonl, .json (an object per line), .parquet, and .txt (a text per line) for "
        "anomalies. Labels: names or numbers of the model's own labels.",
    )
    add = parser.add_argument
    several: dict[str, Any] = {"type": Path, "nargs": "+", "action": "extend", "default": [], "metavar": "FILE"}
    add("--model", metavar="DIR_OR_HUB_ID", nargs="+", action="extend", required=True, help="several are compared")
    add("--in-distribution", type=Path, required=True, metavar="FILE", help="held-out texts like those of the training")
    add("--shift", help="the same task elsewhere", **several)
    add("--adversarial", help="made to fool a model", **several)
    add("--anomaly", help="texts of no class", **several)
    add("--attack", type=not_negative, default=0, metavar="N", help="swap characters in N in-distribution texts")
    add_columns(parser)
    add("--label-names", nargs="+", metavar="NAME", help="in the order of their numbers, of models that name none")
    add("--max-length", type=positive, metavar="N", help="tokens per text; the rest is cut off (512)")
    add("--output", type=Path, default=Path("evaluation"), metavar="DIR", help=f"where {RESULTS} and {RELIABILITY} go")
    return parser


def measure(options: argparse.Namespace, console: Console) -> dict[str, tuple[Subject, Evaluation]]:
    """Read files, load one model after the other, and evaluate it."""
    files: dict[Role, list[Path]] = {
        "in_distribution": [options.in_distribution],
        "shift": options.shift,
        "adversarial": options.adversarial,
        "anomaly": options.anomaly,
    }
    sets, notes = read_sets(files, given_columns(options))
    for note in notes:
        tell_note(note, console)
    return {each.name: (each, measure_one(each, options, console)) for each in subjects(options, sets)}


def tell_note(text: str, console: Console) -> None:
    console.print(f"note: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def subjects(options: argparse.Namespace, sets: Sequence[FileSet]) -> list[Subject]:
    """The models with their labels, before any of them is loaded.

    Raises:
        UserError: a label is unknown to a model; or the files write numbers, and the models do not number alike.
    """
    found, numbered = [], []
    for name, path in zip(short_names(options.model), options.model, strict=True):
        config = load_config(path)
        check_exclusive_labels(path, config)
        own = label_names_of(config)
        labels = tuple(options.label_names) if options.label_names and unnamed(own) else own
        if len(labels) != len(own):
            raise UserError(f"--label-names {' '.join(labels)}: model {path!r} has {len(own)} labels")
        numbers = LabelNumbers(labels, f"model {path!r}", sets)
        found.append(Subject(name, path, labels, [numbers.text_set(each) for each in sets]))
        if numbers.used_numbers and not unnamed(labels):
            numbered.append(found[-1])
    for each in numbered:
        if [name.casefold() for name in each.labels] != [name.casefold() for name in numbered[0].labels]:
            first = numbered[0]
            raise UserError(
                f"the files write labels as numbers, but model {first.path!r} has {', '.join(first.labels)} and model "
                f"{each.path!r} {', '.join(each.labels)} in this order; write names"
            )
    return found


def measure_one(subject: Subject, options: argparse.Namespace, console: Console) -> Evaluation:
    """Load a model and evaluate it.

    Raises:
        UserError: it cannot be loaded, or predicts what is not finite.
    """
    classifier = load_classifier(subject.path, options.max_length)
    for each in subject.sets:
        if cut := classifier.count_longer(each.rows()):
            longest = f"{classifier.max_length} tokens"
            tell_note(
                f"{subject.name}: {cut:,} of {len(each.texts):,} texts of {each.name} are cut to {longest}", console
            )
    try:
        with ProgressBar(console, subject.name) as bar:
            return evaluate(
                classifier, subject.sets, label_names=subject.labels, attack_rows=options.attack, observer=bar
            )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"model {subject.path!r}: {error}") from error


def report(options: argparse.Namespace, measured: Mapping[str, tuple[Subject, Evaluation]], console: Console) -> None:
    """Print the tables, write JSON and picture."""
    evaluations = {name: evaluation for name, (_, evaluation) in measured.items()}
    console.print(columns_table("Robustness", evaluations))
    console.print(sets_table("Sets", evaluations))
    settings = {name: jsonable(value) for name, value in vars(options).items()}
    models = {
        name: {"path": subject.path, "labels": list(subject.labels), **evaluation.as_json()}
        for name, (subject, evaluation) in measured.items()
    }
    write_json(options.output / RESULTS, {"settings": settings, "models": models})
    reliability_diagram(options.output / RELIABILITY, {name: each.reliability() for name, each in evaluations.items()})
    console.print(f"Written to {options.output}: {RESULTS}, {RELIABILITY}")


def jsonable(value: Any) -> Any:
    """An option's value, with paths as text."""
    if isinstance(value, list):
        return [jsonable(each) for each in value]
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(main())
