"""Scoring a trained model from all perspectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import metrics
from .data import EvaluationSet, Role, Suite
from .groups import group_accuracies, worst
from .models import Classifier
from .predictions import ATTACK, Predictions, attacked_set, predict_suite
from .progress import SILENT, Observer


def evaluate(classifier: Classifier, suite: Suite, attack_rows: int = 0, observer: Observer = SILENT) -> dict[str, Any]:
    """Score the model on every set of the suite; see :func:`score_predictions`.

    Args:
        attack_rows: rows of the in-distribution test that our attack turns into an adversarial set for this very
            model; 0 for no attack.
    """
    return score_predictions(suite, predict_suite(classifier, suite, attack_rows, observer))


def score_predictions(suite: Suite, predictions: Predictions) -> dict[str, Any]:
    """All scores of a run, from what it stored.

    Returns:
        acc_in; acc_shift and acc_adv, means over the sets of the role; ece, the mean cross-validated calibration error
        over all labelled sets; auroc, the mean over the anomaly sets; None where there is no such set; and per_set, all
        scores of every set by its name.
    """
    labelled_sets = [suite.in_distribution, *suite.role("shift"), *suite.role("adversarial")]
    if ATTACK in predictions.logits:
        labelled_sets.append(attacked_set(suite, len(predictions[ATTACK]), predictions.swaps))
    temperature = validation_temperature(suite, predictions)
    per_set = {each.name: score(suite, each, predictions[each.name], temperature) for each in labelled_sets}
    inside = predictions[suite.in_distribution.name]
    for each in suite.role("anomaly"):
        outside = predictions[each.name]
        per_set[each.name] = {"role": each.role, "rows": len(outside), **metrics.anomaly_scores(inside, outside)}
    return {
        "acc_in": mean_of(per_set, "accuracy", "in_distribution"),
        "acc_shift": mean_of(per_set, "accuracy", "shift"),
        "acc_adv": mean_of(per_set, "accuracy", "adversarial"),
        "ece": mean_of(per_set, "ece", "in_distribution", "shift", "adversarial"),
        "auroc": mean_of(per_set, "auroc", "anomaly"),
        "per_set": per_set,
    }


def validation_temperature(suite: Suite, predictions: Predictions) -> float:
    """The one temperature that suits the validation set best."""
    return metrics.best_temperature(predictions[suite.validation.name], torch.tensor(suite.validation.rows["label"][:]))


def score(suite: Suite, evaluation_set: EvaluationSet, logits: Tensor, temperature: float) -> dict[str, Any]:
    """All scores of a labelled set: role, rows, accuracy, calibration errors, reliability bins and groups.

    Args:
        temperature: found on validation data; of `ece_validation_temperature`.
    """
    true_labels = evaluation_set.rows["label"][:]
    labels = metrics.scored_labels(logits, torch.tensor(true_labels), evaluation_set.merged_labels)
    right = (logits.argmax(-1) == labels).tolist()
    groups = group_accuracies(suite.task, evaluation_set.texts(), true_labels, right, suite.training_words)
    return {
        "role": evaluation_set.role,
        "rows": len(labels),
        "accuracy": metrics.accuracy(logits, labels),
        "ece": metrics.cross_validated_calibration_error(logits, labels),
        "ece_top_label": metrics.calibration_error(logits, labels),
        "ece_validation_temperature": metrics.calibration_error(logits, labels, temperature),
        "reliability": metrics.reliability(logits, labels),
        "groups": groups,
        "worst_group": worst(groups),
    }


def mean_of(per_set: dict[str, dict[str, Any]], key: str, *roles: Role) -> float | None:
    """The mean of a score over the sets of the roles."""
    values: Sequence[float] = [scores[key] for scores in per_set.values() if scores["role"] in roles]
    return sum(values) / len(values) if values else None
