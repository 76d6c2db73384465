"""Whatever classifies texts, as one kind of function: from texts to logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from .errors import UserError
from .progress import SILENT, Observer
from .sets import Texts

PART = 512  # texts that are predicted at once, and then counted as progress
SUMS_TO_ONE = 0.01  # how far the probabilities of a row may be from it; those of 16 bits are not exact


class Predictor:
    """Logits of any classifier, part by part.

    Args:
        classifier: see :func:`roast_optim.evaluation.evaluate`.
        observer: told of every part.
    """

    def __init__(self, classifier: Any, observer: Observer = SILENT) -> None:
        self.predict = as_function(classifier)
        self.observer = observer
        self.gives_probabilities: bool | None = None  # not known before the first call

    def __call__(self, texts: Sequence[Texts]) -> Tensor:
        """Logits [rows, labels], float32; the logarithm of what is a probability.

        Raises:
            ValueError: the classifier returned something of another shape, or that is not finite.
        """
        parts = []
        for start in range(0, len(texts), PART):
            part = texts[start : start + PART]
            parts.append(checked(self.predict(part), len(part)))
            self.observer.advance(steps=len(part))
        outputs = torch.cat(parts)
        are_probabilities = looks_like_probabilities(outputs)
        if self.gives_probabilities is None:
            self.gives_probabilities = are_probabilities
        if not self.gives_probabilities:
            return outputs
        if not are_probabilities:
            raise ValueError("the classifier returned probabilities at first, and then rows that do not sum to 1")
        return outputs.double().clamp(min=torch.finfo(torch.float32).tiny).log().float()


def checked(outputs: Any, rows: int) -> Tensor:
    """What a classifier returned for so many texts, as a tensor [rows, labels] on the CPU.

    Raises:
        ValueError: it has another shape, or is not finite.
    """
    if isinstance(outputs, (list, tuple)) and outputs and isinstance(outputs[0], Tensor):
        outputs = torch.stack([*outputs])
    found = outputs if isinstance(outputs, Tensor) else torch.from_numpy(numpy.asarray(outputs, dtype=numpy.float64))
    if found.ndim != 2 or found.shape[0] != rows or found.shape[1] < 2:
        raise ValueError(
            f"the classifier returned an array of shape {list(found.shape)} for {rows} texts; it must be [texts, "
            "labels] with logits or probabilities of two or more labels"
        )
    found = found.detach().float().cpu()
    if not bool(torch.isfinite(found).all()):
        raise ValueError("the classifier returned logits or probabilities that are not finite")
    return found


def looks_like_probabilities(outputs: Tensor) -> bool:
    """Whether all rows are between 0 and 1 and sum to 1."""
    return bool((outputs >= 0).all() and ((outputs.sum(-1) - 1).abs() <= SUMS_TO_ONE).all())


def as_function(classifier: Any) -> Callable[[Sequence[Texts]], Any]:
    """What predicts tuples of texts: a method of the classifier, a pipeline, or a plain function.

    Raises:
        TypeError: it is none of them.
    """
    if hasattr(classifier, "tokenizer") and hasattr(classifier, "model"):
        return classifier.predict if hasattr(classifier, "collate") else of_pipeline(classifier)
    if isinstance(classifier, tuple) and len(classifier) == 2:
        from .classifier import Classifier, check_exclusive_labels, default_max_length

        model, tokenizer = classifier
        check_exclusive_labels(type(model).__name__, model.config)
        return Classifier(model, tokenizer, default_max_length(model, tokenizer)).predict
    if callable(classifier):
        return lambda texts: classifier([text[0] if len(text) == 1 else text for text in texts])
    raise TypeError(
        f"a {type(classifier).__name__} does not classify texts; give a function from texts to logits or "
        "probabilities, a text-classification pipeline, or (model, tokenizer)"
    )


def of_pipeline(pipeline: Any) -> Callable[[Sequence[Texts]], Tensor]:
    """The logits of a text-classification pipeline of transformers; texts beyond its model's length are cut.

    Raises:
        UserError: it does something else, or its labels do not exclude each other.
    """
    from .classifier import check_exclusive_labels, default_max_length, label_names_of

    if getattr(pipeline, "task", None) != "text-classification":
        raise UserError(f"a pipeline for {getattr(pipeline, 'task', None)!r} does not classify texts")
    config = pipeline.model.config
    check_exclusive_labels(config.name_or_path or type(pipeline.model).__name__, config)
    numbers = {name: number for number, name in enumerate(label_names_of(config))}
    max_length = default_max_length(pipeline.model, pipeline.tokenizer)

    def predict(texts: Sequence[Texts]) -> Tensor:
        inputs = [text[0] if len(text) == 1 else {"text": text[0], "text_pair": text[1]} for text in texts]
        outputs = pipeline(inputs, top_k=None, function_to_apply="none", truncation=True, max_length=max_length)
        logits = torch.empty(len(texts), len(numbers))
        for row, scores in enumerate(outputs):
            for each in scores:
                logits[row, numbers[each["label"]]] = each["score"]
        return logits

    return predict


def label_names_in(classifier: Any) -> tuple[str, ...] | None:
    """The names of the labels, where the classifier brings a model that knows them."""
    model = classifier[0] if isinstance(classifier, tuple) else getattr(classifier, "model", None)
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "id2label"):
        return None
    from .classifier import label_names_of

    return label_names_of(config)
