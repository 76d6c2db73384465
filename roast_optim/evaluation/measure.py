"""From a classifier and sets of texts to its evaluation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .attack import ATTACK, attack
from .predictors import Predictor, label_names_in
from .progress import SILENT, Observer
from .scores import Evaluation, score
from .sets import TextSet, sampled_rows


def evaluate(
    predict: Any,
    sets: Sequence[TextSet],
    *,
    label_names: Sequence[str] | None = None,
    attack_rows: int = 0,
    known_words: Collection[str] | None = None,
    observer: Observer = SILENT,
) -> Evaluation:
    """Measure how robust a classifier is: accuracy, shift, adversarial texts, calibration, anomalies.

    The columns are those of RoAST (arXiv 2312.04032, section 4.1).

    Args:
        predict: a function from a list of texts (of strings, or of tuples for pairs) to logits or probabilities
            [texts, labels] as a tensor, an array or lists; or a text-classification pipeline of transformers; or a
            tuple of a transformers model and its tokenizer. Of the last two, texts longer than the model takes, and
            than 512 tokens, are cut. Outputs that sum to 1 in every row are taken for probabilities.
        sets: exactly one of role "in_distribution", and any others, each with a name of its own.
        label_names: in the order of the labels' numbers; None: the model's own, or the numbers.
        attack_rows: so many in-distribution texts are attacked by swapping characters for this very classifier; they
            are one more adversarial set, "character_swaps". A text costs some 30 predictions, a long one hundreds.
        known_words: the words of the training texts, lower-case; with them accuracy is told by rare words too.
        observer: told of the progress, in texts.

    Raises:
        ValueError: sets do not fit the classifier or each other, or the classifier returned no logits or probabilities.

    Example:
        >>> from roast_optim.evaluation import TextSet, evaluate
        >>> def predict(texts):
        ...     return [[0.1, 0.9] if "good" in text else [0.8, 0.2] for text in texts]
        >>> found = evaluate(predict, [
        ...     TextSet("test", "in_distribution", ["a good film", "a bad film", "so good"], [1, 0, 1]),
        ...     TextSet("other shop", "shift", ["not good at all", "good value", "broken"], [0, 1, 0]),
        ...     TextSet("weather", "anomaly", ["rain in the evening", "mild for the season"]),
        ... ])
        >>> f"{found.acc_in:.2f} {found.acc_shift:.2f} {found.acc_adv} {found.auroc:.2f}"
        '1.00 0.67 None 0.83'
    """
    check_sets(sets)
    predictor = Predictor(predict, observer)
    scored, logits = [*sets], {}
    for each in sorted(sets, key=lambda each: each.role != "in_distribution"):  # first: it tells what is returned
        observer.stage(each.name, len(each.texts))
        logits[each.name] = predictor(each.rows())
    inside = next(each for each in sets if each.role == "in_distribution")
    names = label_names or label_names_in(predict) or [str(number) for number in range(logits[inside.name].shape[-1])]
    for each in sets:
        check_labels(each, logits[each.name], names)
    if attack_rows:
        attacked = attacked_rows(predictor, inside, attack_rows, observer)
        observer.stage(ATTACK, len(attacked.texts))
        logits[ATTACK] = predictor(attacked.rows())
        scored.append(attacked)
    return score(in_order(scored), logits, names, known_words)


def check_sets(sets: Sequence[TextSet]) -> None:
    """Names are unique, and there is one set of in-distribution texts."""
    names = [each.name for each in sets]
    for name in names:
        if names.count(name) > 1 or name == ATTACK:
            raise ValueError(f"two sets are called {name!r}; scores are told by the names of sets")
    if (count := sum(each.role == "in_distribution" for each in sets)) != 1:
        raise ValueError(f"{count} sets of role 'in_distribution'; give exactly one")


def check_labels(texts: TextSet, logits: Tensor, names: Sequence[str]) -> None:
    """The classifier has a name and an output for every label."""
    if logits.shape[-1] != len(names):
        raise ValueError(
            f"set {texts.name!r}: the classifier returned {logits.shape[-1]} outputs for {len(names)} labels"
        )
    for row, label in enumerate(texts.labels or ()):
        if not 0 <= label < len(names):
            raise ValueError(f"set {texts.name!r}, row {row}: label {label}, but there are {len(names)} from 0")


def attacked_rows(predictor: Predictor, inside: TextSet, count: int, observer: Observer) -> TextSet:
    """Rows of the in-distribution set, always the same, after the attack."""
    chosen = sampled_rows(len(inside.texts), count)
    texts, labels = inside.rows(), inside.true_labels()
    mine = [labels[row] for row in chosen]
    observer.stage("attack", len(chosen))
    changed = attack(predictor, [texts[row] for row in chosen], mine, observer)
    return replace(inside, name=ATTACK, role="adversarial", texts=changed, labels=mine)


def in_order(sets: Sequence[TextSet]) -> list[TextSet]:
    """By role: in-distribution, shift, adversarial, anomalies."""
    order = ("validation", "in_distribution", "shift", "adversarial", "anomaly")
    return sorted(sets, key=lambda each: order.index(each.role))
