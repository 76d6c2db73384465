"""Scores against values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from roast_optim.evaluation import metrics


def logits_of(*probabilities: float) -> Tensor:
    """Two-label logits whose second label has these probabilities."""
    second = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([torch.log1p(-second), torch.log(second)], dim=-1)


def test_accuracy_is_the_share_of_right_rows() -> None:
    assert metrics.accuracy(logits_of(0.9, 0.8, 0.3, 0.6), torch.tensor([1, 1, 0, 0])) == pytest.approx(0.75)


def test_calibration_error_by_hand() -> None:
    # Confidences 0.92 and 0.98 share a bin (1 of 2 right), 0.75 is alone and right, 0.66 is alone and wrong.
    logits, labels = logits_of(0.92, 0.98, 0.25, 0.66), torch.tensor([1, 0, 0, 0])
    expected = (2 * abs(0.95 - 0.5) + abs(0.75 - 1) + abs(0.66 - 0)) / 4
    assert metrics.calibration_error(logits, labels) == pytest.approx(expected, abs=1e-6)


def test_a_confidence_of_one_falls_in_the_last_bin() -> None:
    # In one bin: mean confidence 0.96, half right, error 0.46. In two: wrong at 1, right at 0.92: (1 + 0.08) / 2.
    logits = torch.cat([torch.tensor([[-1000.0, 1000.0]], dtype=torch.float64), logits_of(0.92)])
    assert metrics.calibration_error(logits, torch.tensor([0, 1])) == pytest.approx(0.46, abs=1e-6)
    assert metrics.reliability(logits, torch.tensor([0, 1])).rows == [0] * 9 + [2]


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([[0.0, 2.0]])
    assert metrics.probabilities(logits, 2.0)[0, 1] == pytest.approx(1 / (1 + math.exp(-1.0)))


def test_the_calibration_protocol_undoes_a_wrong_temperature() -> None:
    # 80% right at a confidence of 0.8, in every fold alike; then the logits are multiplied by four. torchmetrics sums
    # 450 confidences in float32.
    labels = torch.tensor([1, 1, 1, 1, 0] * 20).repeat_interleave(10)
    calibrated = logits_of(0.8).expand(len(labels), 2)
    assert metrics.calibration_error(calibrated * 4, labels) > 0.19
    assert metrics.cross_validated_calibration_error(calibrated * 4, labels) == pytest.approx(0, abs=1e-5)


def test_the_calibration_protocol_judges_on_the_other_folds() -> None:
    # Ten rows are ten folds of one. For a right row the sharpest temperature (0.25) is the best, for the one wrong row
    # the flattest (8); each is then judged on the nine others.
    logits = logits_of(*[0.7] * 10)
    labels = torch.tensor([1] * 9 + [0])
    sharp, flat = (float(metrics.probabilities(logits, each)[0, 1]) for each in (0.25, 8.0))
    expected = (9 * abs(sharp - 8 / 9) + abs(flat - 1)) / 10
    assert metrics.cross_validated_calibration_error(logits, labels) == pytest.approx(expected, abs=1e-6)


def test_the_calibration_protocol_needs_no_ten_rows() -> None:
    assert metrics.cross_validated_calibration_error(logits_of(0.9), torch.tensor([1])) == pytest.approx(0.1, abs=1e-6)
    assert 0 <= metrics.cross_validated_calibration_error(logits_of(0.9, 0.2, 0.4), torch.tensor([1, 0, 1])) <= 1


def test_reliability_sums_per_bin() -> None:
    bins = metrics.reliability(logits_of(0.92, 0.98, 0.25), torch.tensor([1, 0, 0]))
    assert bins.rows == [0, 0, 0, 0, 0, 0, 0, 1, 0, 2]
    assert bins.right == [0, 0, 0, 0, 0, 0, 0, 1, 0, 1]
    assert bins.confidence[9] == pytest.approx(1.9)


def test_merged_predictions_count_as_the_label_they_are_merged_into() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0], [0.0, 5.0, 1.0], [5.0, 0.0, 0.0], [0.0, 1.0, 5.0]])
    labels = torch.tensor([2, 0, 2, 2])
    merged = metrics.scored_labels(logits, labels, {1: 2})
    assert merged.tolist() == [1, 0, 2, 2]
    assert metrics.accuracy(logits, merged) == 0.5
    assert metrics.scored_labels(logits, labels, {}).equal(labels)


def test_anomaly_scores_by_hand() -> None:
    # Confidences inside 0.9 0.8 0.7 0.6, outside 0.85 0.55: 0.85 beats three of the four, 0.55 none.
    scores = metrics.anomaly_scores(logits_of(0.9, 0.2, 0.7, 0.4), logits_of(0.85, 0.45))
    assert scores["auroc"] == pytest.approx(5 / 8)
    assert scores["fpr95"] == pytest.approx(1 / 2)  # keeping all four needs a threshold of 0.6, which lets 0.85 pass
    assert scores["aupr"] == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 5) / 4)


def test_relative_improvement() -> None:
    assert metrics.relative_improvement(0.9, 0.8) == pytest.approx(0.5)
    assert metrics.relative_improvement(0.7, 0.8) == pytest.approx(-0.5)
    assert metrics.relative_improvement(0.06, 0.08, best=0.0) == pytest.approx(0.25)
    assert metrics.relative_improvement(0.9, 1.0) is None


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_the_temperature_of_logits_that_were_scaled_by_it_is_found(temperature: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 3, generator=draw) * 2
    labels = torch.multinomial(torch.softmax(logits, -1), 1, generator=draw)[:, 0]
    assert metrics.best_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize(
    "score",
    [
        metrics.accuracy,
        metrics.calibration_error,
        metrics.cross_validated_calibration_error,
        metrics.reliability,
        metrics.best_temperature,
        lambda logits, labels: metrics.anomaly_scores(logits, torch.zeros(3, 2)),
        lambda logits, labels: metrics.anomaly_scores(torch.zeros(3, 2), logits),
    ],
)
def test_predictions_that_are_not_finite_have_no_score(score: Callable[..., Any]) -> None:
    logits = torch.zeros(12, 2)
    logits[:, 1] = torch.nan
    with pytest.raises(ValueError, match="predictions are not finite"):
        score(logits, torch.zeros(12, dtype=torch.long))
