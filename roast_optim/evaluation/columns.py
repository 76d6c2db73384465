"""Which columns of a table hold the texts and the label: as given, or guessed by the names that data sets use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .reading import Table, read_table
from .sets import Role, Texts

LABEL_COLUMNS = ("label", "labels", "gold_label", "gold", "class", "category", "target", "sentiment", "y")
PAIR_COLUMNS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"),
    ("text1", "text2"), ("text_1", "text_2"), ("text_a", "text_b"), ("text", "text_pair"), ("question1", "question2"),
    ("question", "sentence"), ("question", "answer"), ("query", "passage"), ("claim", "evidence"),
)  # fmt: skip
TEXT_COLUMNS = (
    "text",
    "sentence",
    "review",
    "content",
    "document",
    "comment",
    "message",
    "tweet",
    "question",
    "premise",
)


@dataclass(frozen=True)
class Columns:
    """Names of columns that were given; None where they are to be guessed."""

    texts: tuple[str, ...] | None = None
    label: str | None = None


@dataclass(frozen=True)
class LabelledText:
    """A row as a file has it: where it stands, its texts, and its label as text; None of an anomaly."""

    where: str
    texts: Texts
    label: str | None


@dataclass(frozen=True)
class FileSet:
    """The rows of a file, used for one purpose, with labels that nobody has understood yet."""

    name: str
    role: Role
    rows: list[LabelledText]

    def labels(self) -> list[str]:
        """The distinct labels, in the order in which they first occur."""
        return list(dict.fromkeys(row.label for row in self.rows if row.label is not None))


def read_set(path: Path, name: str, role: Role, given: Columns) -> FileSet:
    """Read a file's texts and, unless they are anomalies, labels.

    Raises:
        UserError: a file or column is missing, or a text or label is empty; file and line are named.
    """
    table = read_table(path)
    label = None if role == "anomaly" else label_column(table, given.label)
    texts = text_columns(table, given.texts, label, role)
    rows = []
    for row in table.rows:
        read = tuple(cell(row.values.get(column), column, row.where) for column in texts)
        rows.append(LabelledText(row.where, read, label and cell(row.values.get(label), label, row.where).strip()))
    return FileSet(name, role, rows)


def cell(value: Any, column: str, where: str) -> str:
    """A value as text; a whole number is written without a point, true and false as 1 and 0.

    Raises:
        UserError: there is none, or it is a list or an object.
    """
    if isinstance(value, (dict, list)):
        raise UserError(f"{where}: the column {column!r} holds a {type(value).__name__}, not a text or a number")
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip():
        raise UserError(f"{where}: the column {column!r} is empty")
    return str(value)


def label_column(table: Table, given: str | None) -> str:
    """The column of the labels.

    Raises:
        UserError: the given one is missing, or none has a name that tells it.
    """
    if given is not None:
        return named(table, given)
    for name in LABEL_COLUMNS:
        if found := matching(table, name):
            return found
    raise UserError(
        f"{table.path}:1: no column is called {' or '.join(LABEL_COLUMNS[:2])}; the header has "
        f"{', '.join(table.columns)}; name it with --label-column"
    )


def text_columns(table: Table, given: Sequence[str] | None, label: str | None, role: Role) -> tuple[str, ...]:
    """The column of the texts, or the two of pairs.

    Anomalies may have other columns than those that were given for all files, and single texts where the others are
    pairs.

    Raises:
        UserError: a given one is missing, or their names do not tell them.
    """
    if given is not None:
        if role != "anomaly":
            return tuple(named(table, each) for each in given)
        if found := [name for each in given if (name := matching(table, each))]:
            return tuple(found)
    for pair in PAIR_COLUMNS:
        first, second = (matching(table, name) for name in pair)
        if first and second:
            return first, second
    for name in TEXT_COLUMNS:
        if single := matching(table, name):
            return (single,)
    others = [column for column in table.columns if column != label]
    if len(others) == 1:
        return (others[0],)
    raise UserError(
        f"{table.path}:1: which column holds the texts? The header has {', '.join(table.columns)}; name it, or the two "
        "of pairs, with --text-columns"
    )


def named(table: Table, name: str) -> str:
    """The column of that name.

    Raises:
        UserError: there is none.
    """
    if found := matching(table, name):
        return found
    raise UserError(f"{table.path}:1: column {name!r} is missing; the header has {', '.join(table.columns)}")


def matching(table: Table, name: str) -> str | None:
    """The column of that name or, if there is none, of that name in other case."""
    if name in table.columns:
        return name
    return next((column for column in table.columns if column.casefold() == name.casefold()), None)
