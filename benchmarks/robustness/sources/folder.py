"""Folders of TSV files, each described by its MANIFEST.tsv; the sets of all of them make one suite.

The manifest has the columns file, task, role, rows, source, licence. A data file has one header line and one row per
line: `sentence` and `label` (sentiment), `premise`, `hypothesis` and `label` (entailment), or `text` (anomaly). Tabs
and newlines cannot occur in a text, and quotes mean nothing.

Roles: train, validation, shift, adversarial, anomaly; task "both" serves every task. The first training set of a task
is used unless another is asked for. Notes in the manifest's last columns are read as follows:

- "in-distribution test" marks the validation set on which final scores are measured; the first other validation set
  is for choosing hyper-parameters. A task with a single validation set has it cut in halves, one for each.
- "merging prediction 1 into 2": a prediction of label 1 counts as label 2 on this set.
- "anomaly set for TASK": the set is an anomaly for that task too (labelled sets), or for that task alone (sets of the
  role anomaly, whose texts may be in-distribution for another task).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.sets import Role

from ..data import TASKS, EvaluationSet, Suite, Task, labelled, split, unlabelled

MANIFEST = "MANIFEST.tsv"
MANIFEST_COLUMNS = ("file", "task", "role", "rows", "source", "licence")
TASK_NAMES = (*TASKS, "both")
EVALUATION_ROLES: dict[str, Role] = {
    "validation": "validation",
    "shift": "shift",
    "adversarial": "adversarial",
    "anomaly": "anomaly",
}
ROLES = ("train", *EVALUATION_ROLES)


class Line(NamedTuple):
    """One row of a TSV file; `where` is "FILE:LINE", for messages."""

    where: str
    values: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """One row of the manifest."""

    where: str
    path: Path
    task: str
    role: str
    rows: int
    notes: str

    @property
    def name(self) -> str:
        return self.path.stem

    def serves(self, task: Task) -> bool:
        """Whether the set, in the role that it states, belongs to the task."""
        only = self.anomaly_for()
        if self.role == "anomaly" and only:
            return task.name in only
        return self.task in (task.name, "both")

    def anomaly_for(self) -> set[str]:
        return set(re.findall(r"anomaly set for (\w+)", self.notes))

    def merged_labels(self) -> dict[int, int]:
        return {int(old): int(new) for old, new in re.findall(r"merging prediction (\d+) into (\d+)", self.notes)}


def load_folders(folders: Sequence[Path], task: Task, train_set: str | None = None) -> Suite:
    """Read the sets of a task from one folder or several.

    Raises:
        UserError: a file or column is missing, a label is unknown, a set is empty or has another number of rows than
            the manifest says, or two sets have one name. The message names file and line.
    """
    entries = [entry for folder in folders for entry in read_manifest(folder)]
    check_names(entries)
    where = " and ".join(str(folder / MANIFEST) for folder in folders)
    train = choose_train(where, [each for each in entries if each.role == "train" and each.serves(task)], train_set)
    validation, in_distribution = validation_sets(where, entries, task)
    others = [
        evaluation_set(each, task, EVALUATION_ROLES[each.role])
        for each in entries
        if each.role in ("shift", "adversarial", "anomaly") and each.serves(task)
    ]
    others += [
        EvaluationSet(each.name, "anomaly", read_anomalies(each))
        for each in entries
        if each.role != "anomaly" and task.name in each.anomaly_for()
    ]
    source = "+".join(f"{folder.resolve().name}-{manifest_digest(folder)}" for folder in folders)
    return Suite(task, source, read_labelled(train, task), validation, in_distribution, tuple(others))


def is_file(path: Path) -> bool:
    """Whether there is such a file; False too for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def manifest_digest(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:8]


def check_names(entries: Sequence[Entry]) -> None:
    """Scores are stored by the name of a set, which is its file's without ending.

    Raises:
        UserError: two sets have the same name.
    """
    seen: dict[str, Entry] = {}
    for each in entries:
        other = seen.setdefault(each.name, each)
        if other is not each:
            raise UserError(f"{each.where}: {each.path.name!r} and {other.where}: {other.path.name!r} share a name")


def read_manifest(folder: Path) -> list[Entry]:
    """The rows of MANIFEST.tsv, each checked for a known task and role and an existing file."""
    entries = []
    for where, values in read_tsv(folder / MANIFEST, MANIFEST_COLUMNS, may_be_blank=("source", "licence")):
        path = folder / values["file"]
        if values["task"] not in TASK_NAMES:
            raise UserError(f"{where}: unknown task {values['task']!r}; known: {', '.join(TASK_NAMES)}")
        if values["role"] not in ROLES:
            raise UserError(f"{where}: unknown role {values['role']!r}; known: {', '.join(ROLES)}")
        if not values["rows"].isdecimal():
            raise UserError(f"{where}: rows is {values['rows']!r}; it must be a whole number")
        if not is_file(path):
            raise UserError(f"{where}: file {values['file']!r} does not exist in {folder}")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{where}: file {values['file']!r} lies outside {folder}")
        notes = f"{values['source']} {values['licence']}"
        entries.append(Entry(where, path, values["task"], values["role"], int(values["rows"]), notes))
    return entries


def choose_train(where: str, candidates: list[Entry], name: str | None) -> Entry:
    """The training set called `name`, or the first."""
    if not candidates:
        raise UserError(f"{where}: no set with role train for this task")
    if name is None:
        return candidates[0]
    for each in candidates:
        if each.name == name:
            return each
    raise UserError(f"train set {name!r}: {where} has {', '.join(each.name for each in candidates)}")


def validation_sets(where: str, entries: list[Entry], task: Task) -> tuple[EvaluationSet, EvaluationSet]:
    """The set for choosing hyper-parameters and the in-distribution test, which share no row."""
    found = [each for each in entries if each.role == "validation" and each.serves(task)]
    if not found:
        raise UserError(f"{where}: no set with role validation for task {task.name!r}")
    tests = [each for each in found if "in-distribution test" in each.notes]
    test = tests[0] if tests else found[-1]
    rest = [each for each in found if each is not test]
    if rest:
        return evaluation_set(rest[0], task, "validation"), evaluation_set(test, task, "in_distribution")
    whole = evaluation_set(test, task, "validation")
    first, second = split(whole.rows, len(whole.rows) // 2)
    return (
        replace(whole, name=f"{whole.name}_first_half", rows=first),
        replace(whole, name=f"{whole.name}_second_half", rows=second, role="in_distribution"),
    )


def evaluation_set(entry: Entry, task: Task, role: Role) -> EvaluationSet:
    rows = read_anomalies(entry) if role == "anomaly" else read_labelled(entry, task)
    return EvaluationSet(entry.name, role, rows, entry.merged_labels())


def read_labelled(entry: Entry, task: Task) -> Dataset:
    """Texts and labels of a data file."""
    texts, labels = [], []
    known_labels = {str(number) for number in range(len(task.labels))}
    for where, values in counted(entry, read_tsv(entry.path, (*task.text_columns, "label"))):
        label = values["label"]
        if label not in known_labels:
            raise UserError(f"{where}: unknown label {label!r}; task {task.name!r} has {task.describe_labels()}")
        texts.append(tuple(values[column] for column in task.text_columns))
        labels.append(int(label))
    return labelled(task, texts, labels)


def read_anomalies(entry: Entry) -> Dataset:
    """The column `text` of a data file, or `sentence` if the set was made for another purpose."""
    header = next(lines_of(entry.path), (1, [""]))[1]
    column = "sentence" if "sentence" in header and "text" not in header else "text"
    return unlabelled([values[column] for _, values in counted(entry, read_tsv(entry.path, (column,)))])


def counted(entry: Entry, lines: Iterator[Line]) -> Iterator[Line]:
    """The lines as they come, and at the end a check that there are as many as the manifest says."""
    count = 0
    for line in lines:
        count += 1
        yield line
    if count == 0:
        raise UserError(f"{entry.path}:1: no row after the header; a set must not be empty")
    if count != entry.rows:
        raise UserError(f"{entry.where}: rows is {entry.rows}, but {entry.path} has {count}")


def read_tsv(path: Path, needed: tuple[str, ...], may_be_blank: tuple[str, ...] = ()) -> Iterator[Line]:
    """The rows of a TSV file after its header; every needed column exists and, but for some, is never blank."""
    header: list[str] = []
    for number, fields in lines_of(path):
        where = f"{path}:{number}"
        if not header:
            header = fields
            missing = [column for column in needed if column not in header]
            if any("\r" in each for each in fields):
                raise UserError(f"{where}: its lines end with CR alone; save it with LF or CRLF")
            if missing:
                raise UserError(f"{where}: column {missing[0]!r} is missing; the header has {', '.join(header)}")
            continue
        if len(fields) != len(header):
            raise UserError(f"{where}: {len(fields)} fields, but the header has {len(header)}")
        values = dict(zip(header, fields, strict=True))
        blank = [column for column in needed if column not in may_be_blank and not values[column].strip()]
        if blank:
            raise UserError(f"{where}: column {blank[0]!r} is empty")
        yield Line(where, values)
    if not header:
        raise UserError(f"{path}:1: the file is empty; its first line must name the columns {', '.join(needed)}")


def lines_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and fields of every line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from None
            yield number, text.rstrip("\r\n").split("\t")
