"""Scores of predictions. All are fractions of 1; logits are [rows, labels]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

BINS = 10
FOLDS = 10
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
BELOW_ONE = 1 - torch.finfo(torch.float32).eps  # torchmetrics has an 11th bin for a confidence that is 1 in float32


def finite(logits: Tensor) -> Tensor:
    """The logits.

    Raises:
        ValueError: one is not finite: whatever is computed from it would look like a score.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(f"{int((~torch.isfinite(logits)).any(-1).sum())} of {len(logits)} predictions are not finite")
    return logits


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """softmax(logits / temperature), float64. Logits that are not finite raise ValueError."""
    logits = finite(logits)
    return torch.softmax(logits.double() / temperature, dim=-1)


def scored_labels(logits: Tensor, labels: Tensor, merged: Mapping[int, int]) -> Tensor:
    """Labels such that a prediction is right exactly if, after merging, it is.

    Args:
        merged: prediction -> label that it counts as. On a set without "neutral", {1: 2} makes a prediction of 1
            right where the label is 2.
    """
    predicted = logits.argmax(-1)
    counted_as = predicted.clone()
    for old, new in merged.items():
        counted_as[predicted == old] = new
    return torch.where(counted_as == labels, predicted, labels)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is at the label."""
    return float(multiclass_accuracy(finite(logits), labels, num_classes=logits.shape[-1], average="micro"))


def calibration_error(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Expected calibration error of the most probable label, 10 bins of equal width (Guo et al., ICML 2017)."""
    confident = probabilities(logits, temperature).clamp(max=BELOW_ONE)
    return float(multiclass_calibration_error(confident, labels, num_classes=logits.shape[-1], n_bins=BINS, norm="l1"))


def cross_validated_calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error with a temperature that is chosen on one fold and judged on the others.

    The protocol of RoAST (arXiv 2312.04032): ten folds; for each, the temperature with the least error on that fold
    divides the logits of the remaining rows; the result is the mean error of the ten. Rows i, i + 10, ... form fold i,
    so that files sorted by label do no harm. With fewer than ten rows every row is a fold.
    """
    rows = len(labels)
    folds = min(FOLDS, rows)
    if folds < 2:
        return calibration_error(logits, labels)
    errors = []
    for fold in range(folds):
        chosen = torch.arange(rows) % folds == fold
        best = min(TEMPERATURES, key=lambda value: calibration_error(logits[chosen], labels[chosen], value))
        errors.append(calibration_error(logits[~chosen], labels[~chosen], best))
    return float(numpy.mean(errors))


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature from 1/16 to 16 with the least cross-entropy of these rows (Guo et al., ICML 2017)."""

    def cross_entropy(exponent: float) -> float:
        chosen = torch.log_softmax(finite(logits).double() / 2**exponent, -1).gather(1, labels[:, None])
        return -float(chosen.mean())

    return float(2 ** minimize_scalar(cross_entropy, bounds=(-4, 4), method="bounded").x)


@dataclass(frozen=True)
class ReliabilityBins:
    """What a reliability diagram shows, of each of ten bins of confidence from the lowest to the highest.

    Args:
        rows: how many there are.
        confidence: the sum of their confidences.
        right: how many of them are predicted correctly.
    """

    rows: list[float]
    confidence: list[float]
    right: list[float]

    @classmethod
    def pooled(cls, several: Iterable[ReliabilityBins]) -> ReliabilityBins:
        """The bins of several sets, added up."""
        added: ReliabilityBins = cls(*([0.0] * BINS for _ in fields(cls)))
        for each in several:
            added = cls(*(numpy.add(getattr(added, one.name), getattr(each, one.name)).tolist() for one in fields(cls)))
        return added


def reliability(logits: Tensor, labels: Tensor) -> ReliabilityBins:
    """The bins of a reliability diagram, without any temperature."""
    confidence, predicted = probabilities(logits).max(-1)
    bins = (confidence.clamp(max=BELOW_ONE) * BINS).long()

    def summed(values: Tensor) -> list[float]:
        return [float(each) for each in torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, values.double())]

    return ReliabilityBins(
        rows=summed(torch.ones_like(confidence)), confidence=summed(confidence), right=summed(predicted == labels)
    )


def anomaly_scores(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """How well the largest softmax probability tells in-distribution rows from anomalies.

    The in-distribution rows are the positive class (Hendrycks and Gimpel, ICLR 2017).

    Returns:
        auroc; aupr, the average precision; fpr95, the share of anomalies taken for in-distribution at the first
        threshold that keeps 95% of the in-distribution rows.
    """
    confidence = torch.cat([probabilities(inside).amax(-1), probabilities(outside).amax(-1)]).numpy()
    positive = numpy.repeat([1, 0], [len(inside), len(outside)])
    false_positive, true_positive, _ = roc_curve(positive, confidence)
    return {
        "auroc": float(roc_auc_score(positive, confidence)),
        "aupr": float(average_precision_score(positive, confidence)),
        "fpr95": float(false_positive[numpy.argmax(true_positive >= 0.95)]),
    }


def relative_improvement(score: float, plain: float, best: float = 1.0) -> float | None:
    """(score - plain) / (best - plain): which share of plain fine-tuning's distance to the best value is closed.

    With best=0 it serves for errors: (plain - error) / plain. None where the plain score is the best already.
    """
    return None if plain == best else (score - plain) / (best - plain)
