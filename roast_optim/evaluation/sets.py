"""What a classifier is evaluated on: named sets of texts, each with a role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy

Role = Literal["validation", "in_distribution", "shift", "adversarial", "anomaly"]
ROLES: tuple[Role, ...] = get_args(Role)
Texts = tuple[str, ...]  # of one row: a text, or a pair of them
SAMPLING_SEED = 0  # which rows are taken depends on nothing but their number


@dataclass(frozen=True)
class TextSet:
    """Texts of one origin, all used for one purpose.

    Args:
        name: unique among the sets of an evaluation; scores are told by it.
        role: "in_distribution": held-out texts like those of the training. "shift": the same task elsewhere.
            "adversarial": texts made to fool a model. "anomaly": texts of no class, which have no labels.
            "validation": texts on which nothing is scored; one temperature is fitted to them.
        texts: a string per row, or a tuple of two for a pair such as premise and hypothesis.
        labels: numbers from 0, in the order of the classifier's outputs. None for anomalies.
        merged_labels: prediction -> label that it counts as. A set that knows only "entailment" (0) and
            "no entailment" (2) has {1: 2}.

    Raises:
        ValueError: there is no row, or labels do not fit the role or the texts.
    """

    name: str
    role: Role
    texts: Sequence[str | Texts]
    labels: Sequence[int] | None = None
    merged_labels: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"set {self.name!r}: role is {self.role!r}; give one of {', '.join(ROLES)}")
        if isinstance(self.texts, str) or not len(self.texts):
            raise ValueError(f"set {self.name!r}: texts must be a list with at least one text")
        if (self.labels is None) != (self.role == "anomaly"):
            needed = "have no labels" if self.role == "anomaly" else "need labels"
            raise ValueError(f"set {self.name!r}: texts of role {self.role!r} {needed}")
        if self.labels is not None and len(self.labels) != len(self.texts):
            raise ValueError(f"set {self.name!r}: {len(self.texts)} texts, but {len(self.labels)} labels")

    def rows(self) -> list[Texts]:
        """A tuple of strings per row: (text,) or (premise, hypothesis)."""
        return [(text,) if isinstance(text, str) else tuple(text) for text in self.texts]

    def true_labels(self) -> list[int]:
        """The labels.

        Raises:
            ValueError: the set has none.
        """
        if self.labels is None:
            raise ValueError(f"set {self.name!r} has no labels")
        return [int(label) for label in self.labels]


def sampled_rows(rows: int, count: int) -> list[int]:
    """The numbers of `count` of the rows, drawn without replacement; the same ones at every call."""
    return [int(row) for row in numpy.random.default_rng(SAMPLING_SEED).permutation(rows)[:count]]
