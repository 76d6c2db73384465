"""One's own data: a file for training, one for validation, and those that a model is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from roast_optim.evaluation.columns import Columns, FileSet
from roast_optim.evaluation.labels import LabelNumbers, names_in
from roast_optim.evaluation.sets import TextSet
from roast_optim.evaluation.text_files import read_sets

from ..data import EvaluationSet, Suite, Task, labelled

OWN_DATA = "own_data"  # the task of all runs on files
COLUMNS = ("text", "text_pair")


@dataclass(frozen=True)
class DataFiles:
    """The files of a study and, where they are not to be guessed, the names of their columns; paths as text."""

    train: str
    validation: str
    in_distribution: str
    shift: tuple[str, ...] = ()
    adversarial: tuple[str, ...] = ()
    anomaly: tuple[str, ...] = ()
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None

    def paths(self) -> list[str]:
        return [
            self.train, self.validation, self.in_distribution, *self.shift, *self.adversarial, *self.anomaly,
        ]  # fmt: skip


def load_files(files: DataFiles) -> tuple[Suite, list[str]]:
    """Read the files. The labels are those of the training file, whatever they are, and files name them.

    Returns:
        The suite, and what should be known of its sets.

    Raises:
        UserError: a file, column or label cannot be used; file and line are named.
    """
    sets, notes = read_sets(
        {
            "validation": [Path(files.train), Path(files.validation)],
            "in_distribution": [Path(files.in_distribution)],
            "shift": [*map(Path, files.shift)],
            "adversarial": [*map(Path, files.adversarial)],
            "anomaly": [*map(Path, files.anomaly)],
        },
        Columns(files.text_columns, files.label_column),
    )
    names = names_in(sets[:1])
    task = Task(OWN_DATA, names, COLUMNS[: len(sets[0].rows[0].texts)])
    numbers = LabelNumbers(names, files.train, sets, names_only=True)
    train, validation, in_distribution, *others = (as_evaluation_set(task, numbers.text_set(each)) for each in sets)
    suite = Suite(task, f"files-{digest(files.paths())}", train.rows, validation, in_distribution, tuple(others))
    return suite, notes + unseen_labels(names, sets)


def as_evaluation_set(task: Task, texts: TextSet) -> EvaluationSet:
    if texts.labels is not None:
        rows = labelled(task, texts.rows(), texts.labels)
    else:
        columns = zip(*texts.rows(), strict=True)
        rows = Dataset.from_dict(dict(zip(COLUMNS, map(list, columns), strict=False)))
    return EvaluationSet(texts.name, texts.role, rows)


def unseen_labels(names: Sequence[str], sets: Sequence[FileSet]) -> list[str]:
    """Notes on labels that the in-distribution set lacks, of which nothing is measured there."""
    tested = next(each for each in sets if each.role == "in_distribution")
    found = {label.casefold() for label in names_in([tested])}
    missing = [name for name in names if name.casefold() not in found]
    return [f"{tested.name} has no row of the label {', '.join(missing)}"] if missing else []


def digest(paths: Sequence[str]) -> str:
    """Of the content of the files, in their order."""
    found = hashlib.sha256()
    for path in paths:
        found.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return found.hexdigest()[:8]
