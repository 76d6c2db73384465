"""What the study trains and measures on: tasks, evaluation sets, and the suite of all sets of a task."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from datasets import Dataset

from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.sets import Role, Texts, TextSet, sampled_rows


@dataclass(frozen=True)
class Task:
    """A classification task: the names of its labels in the order of their numbers, and of its text columns."""

    name: str
    labels: tuple[str, ...]
    text_columns: tuple[str, ...]

    def describe_labels(self) -> str:
        return ", ".join(f"{number} ({label})" for number, label in enumerate(self.labels))


TASKS = {
    task.name: task
    for task in (
        Task("sentiment", ("negative", "positive"), ("sentence",)),
        Task("entailment", ("entailment", "neutral", "contradiction"), ("premise", "hypothesis")),
    )
}


@dataclass(frozen=True)
class EvaluationSet:
    """Rows of one data set, all used for one purpose.

    Args:
        rows: the task's text columns and an int64 column `label`; anomalies have the text columns alone, of which a
            pair task may have only the first.
        merged_labels: prediction -> label it counts as. A set that knows only "entailment" (0) and "no entailment"
            (2) has {1: 2}.
    """

    name: str
    role: Role
    rows: Dataset
    merged_labels: Mapping[int, int] = field(default_factory=dict)

    def texts(self) -> list[Texts]:
        """One tuple of strings per row: (sentence,) or (premise, hypothesis)."""
        return texts_of(self.rows)

    def as_text_set(self) -> TextSet:
        """The set as it is scored."""
        labels = self.rows["label"][:] if self.role != "anomaly" else None
        return TextSet(self.name, self.role, self.texts(), labels, self.merged_labels)


@dataclass(frozen=True)
class Suite:
    """Everything that one task is trained and measured on.

    Args:
        source: names the data in results.
        validation: for choosing hyper-parameters; never used for a final score.
        in_distribution: held-out rows like the training rows.
        others: the sets of the roles shift, adversarial and anomaly.
    """

    task: Task
    source: str
    train: Dataset
    validation: EvaluationSet
    in_distribution: EvaluationSet
    others: tuple[EvaluationSet, ...]

    @cached_property
    def training_words(self) -> frozenset[str]:
        """The words of the training rows, lower-case."""
        return frozenset(word for texts in texts_of(self.train) for text in texts for word in text.lower().split())

    def role(self, role: Role) -> list[EvaluationSet]:
        return [each for each in (self.validation, self.in_distribution, *self.others) if each.role == role]

    def sampled(self, train_rows: int | None, eval_rows: int | None) -> Suite:
        """The suite with at most so many rows per set, always the same ones; None keeps all."""
        return replace(
            self,
            train=sample(self.train, train_rows),
            validation=replace(self.validation, rows=sample(self.validation.rows, eval_rows)),
            in_distribution=replace(self.in_distribution, rows=sample(self.in_distribution.rows, eval_rows)),
            others=tuple(replace(each, rows=sample(each.rows, eval_rows)) for each in self.others),
        )

    @cached_property
    def digest(self) -> str:
        """Of the content of all sets: 12 hexadecimal digits that change with any text or label."""
        found = hashlib.sha256()
        for rows in (self.train, self.validation.rows, self.in_distribution.rows, *(each.rows for each in self.others)):
            for name in rows.column_names:
                found.update(f"{name}\0".encode())
                found.update("\0".join(map(str, rows[name][:])).encode())
        return found.hexdigest()[:12]

    def for_tuning(self, domains: Sequence[str] = ()) -> Suite:
        """The suite for choosing hyper-parameters: the validation set in place of the in-distribution test.

        Args:
            domains: names of the other sets that are measured as well, which no final score may then use.
        """
        chosen = tuple(each for each in self.others if each.name in domains)
        return replace(self, in_distribution=replace(self.validation, role="in_distribution"), others=chosen)

    def without(self, names: Sequence[str]) -> Suite:
        """The suite for final scores: without the sets that served to choose settings.

        Raises:
            UserError: there is no such set.
        """
        known = [each.name for each in self.others]
        for name in names:
            if name not in known:
                raise UserError(f"set {name!r} is unknown; the data has {', '.join(known)}")
        return replace(self, others=tuple(each for each in self.others if each.name not in names))


def texts_of(rows: Dataset) -> list[Texts]:
    """The text columns of every row, in the order of the columns."""
    columns = [rows[name][:] for name in rows.column_names if name != "label"]
    return list(zip(*columns, strict=True))


def sample(rows: Dataset, count: int | None) -> Dataset:
    """At most `count` rows drawn without replacement, the same ones at every call; None keeps all, in their order."""
    if count is None or count >= len(rows):
        return rows
    return rows.select(sampled_rows(len(rows), count))


def labelled(task: Task, texts: Sequence[Texts], labels: Sequence[int]) -> Dataset:
    """A Dataset with the task's text columns and `label`."""
    columns = dict(zip(task.text_columns, map(list, zip(*texts, strict=True)), strict=True))
    return Dataset.from_dict({**columns, "label": list(labels)})


def unlabelled(texts: Sequence[str]) -> Dataset:
    """A Dataset of single texts, as anomalies are."""
    return Dataset.from_dict({"text": list(texts)})


def split(rows: Dataset, *counts: int) -> list[Dataset]:
    """Cut `rows`, after a shuffle that is always the same, into parts of the given sizes and the remainder."""
    if sum(counts) >= len(rows):
        raise UserError(f"{len(rows)} rows cannot be split into parts of {counts} rows and a remainder")
    shuffled = rows.select(sampled_rows(len(rows), len(rows)))
    bounds = [0]
    for count in counts:
        bounds.append(bounds[-1] + count)
    bounds.append(len(rows))
    return [shuffled.select(range(start, end)) for start, end in pairwise(bounds)]
