"""Distances from the pre-trained weights, by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.robustness.distance import DistanceFromPretrained, linear_cka
from roast_optim.evaluation.classifier import Classifier


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
