"""Scoring a trained model from all perspectives."""

from __future__ import annotations

from typing import Any

from roast_optim.evaluation.attack import ATTACK
from roast_optim.evaluation.classifier import Classifier
from roast_optim.evaluation.progress import SILENT, Observer
from roast_optim.evaluation.scores import score

from .data import Suite
from .predictions import Predictions, attacked_set, predict_suite


def evaluate(classifier: Classifier, suite: Suite, attack_rows: int = 0, observer: Observer = SILENT) -> dict[str, Any]:
    """Score the model on every set of the suite; see :func:`score_predictions`.

    Args:
        attack_rows: rows of the in-distribution test that our attack turns into an adversarial set for this very
            model; 0 for no attack.
    """
    return score_predictions(suite, predict_suite(classifier, suite, attack_rows, observer))


def score_predictions(suite: Suite, predictions: Predictions) -> dict[str, Any]:
    """All scores of a run, from what it stored: :class:`roast_optim.evaluation.Evaluation` as JSON."""
    sets = [suite.validation, suite.in_distribution, *suite.role("shift"), *suite.role("adversarial")]
    if ATTACK in predictions.logits:
        sets.append(attacked_set(suite, len(predictions[ATTACK]), predictions.swaps))
    sets += suite.role("anomaly")
    texts = [each.as_text_set() for each in sets]
    return score(texts, predictions.logits, suite.task.labels, suite.training_words).as_json()
