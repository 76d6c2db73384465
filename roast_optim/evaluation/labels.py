"""Labels as files write them, by name or by number, and the numbers that a classifier has for them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .columns import FileSet, LabelledText
from .errors import UserError
from .sets import TextSet

UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls labels that nobody named


class LabelNumbers:
    """Turns the labels of files into numbers.

    A label is understood by its name, by its name in other case, and by its number. Where names are numbers themselves
    ("1" to "5" for 0 to 4), all labels of all sets are read in the one way or all in the other: by name if each of
    them is a name, else by number.

    Args:
        names: of the labels, in the order of their numbers.
        owner: whose labels they are, for messages.
        sets: all that will be read.
        names_only: whether numbers mean nothing, because the order of the names does not.
    """

    def __init__(self, names: Sequence[str], owner: str, sets: Sequence[FileSet], *, names_only: bool = False) -> None:
        self.names = tuple(names)
        self.owner = owner
        written = [without_point(name) for name in self.names]
        folded = [name.casefold() for name in written]
        self.by_name = {name: number for number, name in enumerate(written)}
        self.in_any_case = {name: number for number, name in enumerate(folded) if folded.count(name) == 1}
        labels = [label for each in sets for label in each.labels()]
        named = [label for label in labels if self.number_by_name(label) is not None]
        names_are_numbers = any(whole_number(name) is not None for name in self.names)
        self.reads_names = names_only or not names_are_numbers or len(named) == len(labels)
        self.reads_numbers = not names_only and (not names_are_numbers or not self.reads_names)
        self.used_numbers = len(named) < len(labels) or not self.reads_names

    def number_by_name(self, label: str) -> int | None:
        written = without_point(label)
        return self.by_name.get(written, self.in_any_case.get(written.casefold()))

    def number(self, row: LabelledText) -> int:
        """The number of a row's label.

        Raises:
            UserError: there is no such label.
        """
        label = row.label
        assert label is not None
        found = self.number_by_name(label) if self.reads_names else None
        if found is None and self.reads_numbers:
            number = whole_number(label)
            found = number if number is not None and 0 <= number < len(self.names) else None
        if found is None:
            cure = "; name them in this order with --label-names" if unnamed(self.names) else ""
            raise UserError(f"{row.where}: unknown label {label!r}; {self.owner} has {self.describe()}{cure}")
        return found

    def describe(self) -> str:
        return ", ".join(f"{number} ({name})" for number, name in enumerate(self.names))

    def text_set(self, rows: FileSet) -> TextSet:
        """The set with numbers for labels."""
        labels = None if rows.role == "anomaly" else [self.number(row) for row in rows.rows]
        return TextSet(rows.name, rows.role, [row.texts for row in rows.rows], labels)


def unnamed(names: Sequence[str]) -> bool:
    """Whether nobody gave the labels names: LABEL_0, LABEL_1 and so on."""
    return all(UNNAMED.fullmatch(name) for name in names)


def whole_number(text: str) -> int | None:
    """The number that a text writes, as 1 or 1.0; None if it is something else."""
    return int(match[1]) if (match := re.fullmatch(r"\s*(-?\d{1,9})(?:\.0+)?\s*", text)) else None


def without_point(label: str) -> str:
    """The label without blanks around it; a whole number that is written as 1.0 is 1."""
    number = whole_number(label) if "." in label else None
    return label.strip() if number is None else str(number)


def names_in(sets: Sequence[FileSet]) -> tuple[str, ...]:
    """The labels of some sets as names in order: of their numbers if all are whole numbers, else of the alphabet.

    Labels that differ by case alone are one, written as it first occurs.
    """
    first: dict[str, str] = {}
    for label in (without_point(label) for each in sets for label in each.labels()):
        first.setdefault(label.casefold(), label)
    numbers = {label: whole_number(label) for label in first.values()}
    if all(number is not None for number in numbers.values()):
        return tuple(sorted(first.values(), key=lambda label: numbers[label] or 0))
    return tuple(sorted(first.values(), key=str.casefold))


def problem_of_classes(rows: FileSet) -> str | None:
    """What is wrong with a labelled set of one class, or None."""
    if rows.role == "anomaly" or len({without_point(label).casefold() for label in rows.labels()}) > 1:
        return None
    first, last = rows.rows[0], rows.rows[-1]
    return (
        f"{first.where}: all rows from here to {last.where} have the label {first.label!r}; a set of one class says "
        "nothing of the others"
    )
