"""Accuracy of groups of rows: a mean can hide that short texts, rare words or one label are got wrong."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy

from .sets import Texts

THIRDS = ("low", "middle", "high")


def group_accuracies(
    label_names: Sequence[str],
    texts: Sequence[Texts],
    labels: Sequence[int],
    right: Sequence[bool],
    known_words: Collection[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Accuracy by label, by length and by rare words.

    Args:
        label_names: in the order of their numbers.
        right: whether each row was predicted correctly.
        known_words: the words of the training rows, lower-case; None where they are not known.

    Returns:
        "label": the accuracy of each label that occurs; "length" and, with known words, "rare_words": low, middle and
        high, the thirds of the set by number of words, and by share of words that no training row has. Rows that tie
        are told apart by their place, so that the thirds are equally large; none if there are fewer than three rows.
    """
    correct = numpy.asarray(right, dtype=float)
    numbers = numpy.asarray(labels)
    words = [" ".join(text).lower().split() for text in texts]
    found = {
        "label": {label_names[each]: float(correct[numbers == each].mean()) for each in sorted({*labels})},
        "length": by_thirds(correct, [len(each) for each in words]),
    }
    if known_words is not None:
        rare = [sum(word not in known_words for word in each) / max(1, len(each)) for each in words]
        found["rare_words"] = by_thirds(correct, rare)
    return found


def by_thirds(correct: numpy.ndarray, values: Sequence[float]) -> dict[str, float]:
    """Accuracy of the thirds of the rows with the lowest, the middle and the highest values."""
    if len(values) < len(THIRDS):
        return {}
    order = numpy.argsort(values, kind="stable")
    parts = numpy.array_split(order, len(THIRDS))
    return {name: float(correct[part].mean()) for name, part in zip(THIRDS, parts, strict=True)}


def worst(groups: dict[str, dict[str, float]]) -> float:
    """The least accuracy of any group."""
    return min(accuracy for accuracies in groups.values() for accuracy in accuracies.values())
