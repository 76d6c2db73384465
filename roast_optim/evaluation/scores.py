"""From logits to scores: of every set, and the five columns that sum them up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from . import metrics
from .groups import group_accuracies, worst
from .metrics import ReliabilityBins
from .sets import Role, TextSet


@dataclass(frozen=True)
class Perspective:
    """A score by its name in results, its title in tables, and its best value."""

    key: str
    title: str
    best: float


PERSPECTIVES = (
    Perspective("acc_in", "In-dist.", 1.0),
    Perspective("acc_shift", "Shift", 1.0),
    Perspective("acc_adv", "Adversarial", 1.0),
    Perspective("ece", "ECE", 0.0),
    Perspective("auroc", "AUROC", 1.0),
)


@dataclass(frozen=True)
class LabelledScores:
    """All scores of a set with labels; fractions of 1.

    Args:
        ece: expected calibration error, with a temperature chosen by cross-validation on this set.
        ece_top_label: the same with the classifier's own confidences.
        ece_validation_temperature: the same with the one temperature that suits the validation set best; None without
            a validation set.
        reliability: the bins of a reliability diagram, without any temperature.
        groups: accuracy by label, by length and by rare words.
        worst_group: the least of them.
    """

    role: Role
    rows: int
    accuracy: float
    ece: float
    ece_top_label: float
    ece_validation_temperature: float | None
    reliability: ReliabilityBins
    groups: dict[str, dict[str, float]]
    worst_group: float


@dataclass(frozen=True)
class AnomalyScores:
    """How well the largest probability tells texts of no class from the in-distribution set; fractions of 1.

    Args:
        aupr: area under the curve of precision and recall, the average precision.
        fpr95: share of the anomalies taken for in-distribution where 95% of the in-distribution texts are.
    """

    role: Role
    rows: int
    auroc: float
    aupr: float
    fpr95: float


@dataclass(frozen=True)
class Evaluation:
    """What a classifier is worth from five perspectives; fractions of 1, None where there is no such set.

    Args:
        acc_in: accuracy on the in-distribution set.
        acc_shift, acc_adv: mean accuracy over the sets of shifted, and of adversarial texts.
        ece: mean expected calibration error over all labelled sets (less is better); its temperature is chosen by
            cross-validation, see :func:`roast_optim.evaluation.metrics.cross_validated_calibration_error`.
        auroc: mean area under the ROC curve over the anomaly sets.
        per_set: all scores of every set by its name.
    """

    acc_in: float
    acc_shift: float | None
    acc_adv: float | None
    ece: float
    auroc: float | None
    per_set: dict[str, LabelledScores | AnomalyScores]

    def as_json(self) -> dict[str, Any]:
        """The same as dicts, lists and numbers."""
        return asdict(self)

    def labelled(self) -> dict[str, LabelledScores]:
        """The scores of the sets with labels."""
        return {name: each for name, each in self.per_set.items() if isinstance(each, LabelledScores)}

    def reliability(self) -> ReliabilityBins:
        """The bins of all labelled sets together."""
        return ReliabilityBins.pooled(each.reliability for each in self.labelled().values())


def score(
    sets: Sequence[TextSet],
    logits: Mapping[str, Tensor],
    label_names: Sequence[str],
    known_words: Collection[str] | None = None,
) -> Evaluation:
    """All scores of predictions.

    Args:
        sets: exactly one of role in_distribution.
        logits: [rows, labels] by the name of the set.
        label_names: in the order of the labels' numbers.
        known_words: the words of the training texts, lower-case, for the accuracy by rare words.

    Raises:
        ValueError: there is not one in-distribution set, or logits are not finite.
    """
    inside = [each for each in sets if each.role == "in_distribution"]
    if len(inside) != 1:
        raise ValueError(f"{len(inside)} sets of role 'in_distribution'; give exactly one")
    temperature = next((temperature_of(each, logits[each.name]) for each in sets if each.role == "validation"), None)
    per_set: dict[str, LabelledScores | AnomalyScores] = {}
    for each in sets:
        if each.role == "anomaly":
            found = metrics.anomaly_scores(logits[inside[0].name], logits[each.name])
            per_set[each.name] = AnomalyScores(each.role, len(each.texts), **found)
        elif each.role != "validation":
            per_set[each.name] = score_labelled(each, logits[each.name], label_names, known_words, temperature)
    labelled = [each for each in per_set.values() if isinstance(each, LabelledScores)]
    ece = mean([each.ece for each in labelled])
    assert ece is not None  # there is an in-distribution set
    return Evaluation(
        acc_in=next(each.accuracy for each in labelled if each.role == "in_distribution"),
        acc_shift=mean([each.accuracy for each in labelled if each.role == "shift"]),
        acc_adv=mean([each.accuracy for each in labelled if each.role == "adversarial"]),
        ece=ece,
        auroc=mean([each.auroc for each in per_set.values() if isinstance(each, AnomalyScores)]),
        per_set=per_set,
    )


def temperature_of(validation: TextSet, logits: Tensor) -> float:
    """The one temperature that suits the validation set best."""
    return metrics.best_temperature(logits, torch.tensor(validation.true_labels()))


def score_labelled(
    texts: TextSet,
    logits: Tensor,
    label_names: Sequence[str],
    known_words: Collection[str] | None = None,
    temperature: float | None = None,
) -> LabelledScores:
    """All scores of a labelled set.

    Args:
        temperature: found on validation data; of `ece_validation_temperature`.
    """
    true_labels = texts.true_labels()
    labels = metrics.scored_labels(logits, torch.tensor(true_labels), texts.merged_labels)
    right = (logits.argmax(-1) == labels).tolist()
    groups = group_accuracies(label_names, texts.rows(), true_labels, right, known_words)
    return LabelledScores(
        role=texts.role,
        rows=len(labels),
        accuracy=metrics.accuracy(logits, labels),
        ece=metrics.cross_validated_calibration_error(logits, labels),
        ece_top_label=metrics.calibration_error(logits, labels),
        ece_validation_temperature=None
        if temperature is None
        else metrics.calibration_error(logits, labels, temperature),
        reliability=metrics.reliability(logits, labels),
        groups=groups,
        worst_group=worst(groups),
    )


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
