"""Group accuracies and distances from the pre-trained weights, by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.robustness.data import TASKS
from benchmarks.robustness.distance import DistanceFromPretrained, linear_cka
from benchmarks.robustness.groups import group_accuracies, worst
from benchmarks.robustness.models import Classifier

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
        TASKS["sentiment"], TEXTS, [0, 1, 0, 1, 0, 1], [True, True, False, True, False, False], {"one", "words", "x"}
    )
    assert groups["label"] == {"negative": pytest.approx(1 / 3), "positive": pytest.approx(2 / 3)}
    assert groups["length"] == {"low": 1.0, "middle": 0.5, "high": 0.0}
    # Shares of unknown words: 0, 1/2, 2/3, 3/4, 4/5, 0.
    assert groups["rare_words"] == {"low": 0.5, "middle": 0.5, "high": 0.5}
    assert worst(groups) == 0.0


def test_labels_that_do_not_occur_and_thirds_of_two_rows_are_left_out() -> None:
    groups = group_accuracies(TASKS["entailment"], [("a", "b"), ("c", "d")], [2, 2], [True, False], set())
    assert groups == {"label": {"contradiction": 0.5}, "length": {}, "rare_words": {}}


def test_a_model_that_has_not_moved_is_at_no_distance(classifier: Classifier) -> None:
    classifier.model.train()
    distance = DistanceFromPretrained(classifier, [("a great film",), ("awful",), ("this story",)])
    measured = distance.measure()
    assert classifier.model.training
    assert measured["l2"] == measured["share_moved"] == 0
    assert measured["cka"] == pytest.approx(1)
    assert measured["cosine"] == pytest.approx(1)


def test_distances_of_one_moved_tensor(classifier: Classifier) -> None:
    distance = DistanceFromPretrained(classifier, [("a great film",), ("awful",), ("this story",)])
    weights = dict(classifier.model.named_parameters())
    table = weights["bert.embeddings.word_embeddings.weight"]
    with torch.no_grad():
        table[0] += 2.0
        weights["classifier.weight"].add_(9.0)  # the head is new, and does not count
    elements = sum(param.numel() for param in classifier.model.base_model.parameters())
    measured = distance.measure()
    assert measured["l2"] == pytest.approx(2 * table.shape[1] ** 0.5, rel=1e-6)
    assert measured["share_moved"] == pytest.approx(table.shape[1] / elements)


def test_alignment_ignores_rotation_and_scale_and_sees_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 6, dtype=torch.float64, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator)).Q
    assert linear_cka(rows, 3 * rows @ rotation + 1) == pytest.approx(1)
    assert linear_cka(rows, torch.randn(50, 6, dtype=torch.float64, generator=generator)) < 0.5
