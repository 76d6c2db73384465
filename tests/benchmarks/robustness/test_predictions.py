"""What a run stores is enough to compute its scores again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.robustness.data import Suite
from benchmarks.robustness.errors import DivergedError
from benchmarks.robustness.evaluation import evaluate, score_predictions
from benchmarks.robustness.predictions import (
    ATTACK,
    load_predictions,
    predict_suite,
    save_predictions,
    stored,
    with_swaps,
)
from roast_optim.evaluation.attack import Swap, apply_swaps, swaps_between
from roast_optim.evaluation.classifier import Classifier
from roast_optim.evaluation.errors import UserError


def test_stored_predictions_give_the_scores_of_the_run(classifier: Classifier, suite: Suite, tmp_path: Path) -> None:
    predictions = predict_suite(classifier, suite, attack_rows=8)
    save_predictions(tmp_path / "run.npz", predictions)
    again = load_predictions(tmp_path / "run.npz")
    assert again.swaps == list(predictions.swaps)
    assert score_predictions(suite, again) == score_predictions(suite, predictions)
    assert score_predictions(suite, again) == evaluate(classifier, suite, attack_rows=8)
    assert len(again[ATTACK]) == 8


def test_swaps_are_found_and_applied_in_pairs_of_texts_too() -> None:
    before = [("premise stays", "the good film"), ("p", "nothing  changes"), ("p", "bad end")]
    after = [("premise stays", "the godo flim"), ("p", "nothing changes"), ("p", "bad edn")]
    swaps = swaps_between(before, after)
    assert swaps == [Swap(0, 1, 2), Swap(0, 2, 1), Swap(2, 1, 1)]
    assert apply_swaps(before, swaps) == [after[0], before[1], after[2]]


def test_a_set_with_swaps_keeps_its_columns_and_labels(suite: Suite) -> None:
    clean = suite.in_distribution
    first = clean.texts()[0][0].split()
    place = next(at for at, word in enumerate(first) if len(word) > 3)
    changed = with_swaps(clean, [Swap(0, place, 1)])
    assert changed.rows.column_names == clean.rows.column_names
    assert changed.rows["label"][:] == clean.rows["label"][:]
    assert [row for row in range(len(clean.rows)) if changed.texts()[row] != clean.texts()[row]] == [0]


def test_storing_changes_probabilities_by_less_than_a_thousandth() -> None:
    logits = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * 5 + 100
    difference = torch.softmax(stored(logits, "x"), -1) - torch.softmax(logits, -1)
    assert float(difference.abs().max()) < 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_predictions_that_are_not_finite_are_no_scores(value: float) -> None:
    logits = torch.zeros(4, 2)
    logits[2, 1] = value
    with pytest.raises(DivergedError, match=r"1 of 4 predictions on 'imdb'"):
        stored(logits, "imdb")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no archive"])
def test_a_file_that_holds_no_predictions_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.npz: no predictions"):
        load_predictions(path)
