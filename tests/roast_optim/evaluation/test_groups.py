"""Group accuracies by hand."""

from __future__ import annotations

import pytest

from roast_optim.evaluation.groups import group_accuracies, worst

TEXTS = [
    ("one",),
    ("two words",),
    ("now Three words",),
    ("here are four words",),
    ("and here are five words",),
    ("x " * 6,),
]


def test_groups_by_hand() -> None:
    groups = group_accuracies(
        ["negative", "positive"],
        TEXTS,
        [0, 1, 0, 1, 0, 1],
        [True, True, False, True, False, False],
        {"one", "words", "x"},
    )
    assert groups["label"] == {"negative": pytest.approx(1 / 3), "positive": pytest.approx(2 / 3)}
    assert groups["length"] == {"low": 1.0, "middle": 0.5, "high": 0.0}
    # Shares of unknown words: 0, 1/2, 2/3, 3/4, 4/5, 0.
    assert groups["rare_words"] == {"low": 0.5, "middle": 0.5, "high": 0.5}
    assert worst(groups) == 0.0


def test_labels_that_do_not_occur_and_thirds_of_two_rows_are_left_out() -> None:
    groups = group_accuracies(
        ["entailment", "neutral", "contradiction"], [("a", "b"), ("c", "d")], [2, 2], [True, False], set()
    )
    assert groups == {"label": {"contradiction": 0.5}, "length": {}, "rare_words": {}}


def test_without_the_training_words_there_are_no_groups_by_rare_words() -> None:
    groups = group_accuracies(["negative", "positive"], TEXTS, [0, 1] * 3, [True] * 6)
    assert set(groups) == {"label", "length"}
