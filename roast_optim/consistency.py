"""The consistency loss between the predictions of two passes, over all that an output has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from .batch_part import BatchPart
from .forward_passes import ForwardPasses, PassResult
from .losses import consistency_loss
from .model_output import comparable
from .token_mask import find_labels


def consistency_of(
    clean: PassResult,
    clean_predictions: Mapping[str, Tensor],
    other: PassResult,
    passes: ForwardPasses,
    part: BatchPart,
    *,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    divisor: Tensor | float | None,
    needed: bool,
    say_once: Callable[[str, str], None],
) -> Tensor:
    """The sum over all predictions; 0 if none is there and none is needed.

    Args:
        clean: the clean pass.
        clean_predictions: its predictions for ``part``, with their graph or without.
        other: a pass of the same rows.
        passes: which both are of.
        part: the rows.
        loss_fn: computes the task loss; None: the model does.
        divisor: what the task loss is divided by; None: it is a mean.
        needed: whether there must be predictions.
        say_once: what is said of labels that do not fit.
    """
    call = passes.call
    is_shifted = loss_fn is None or getattr(loss_fn, "labels_are_shifted", False)
    parts = []
    for name, first, second in comparable(clean_predictions, other.predictions, clean.output, needed=needed):
        whole = clean.predictions[name].shape
        found = find_labels(passes.inner_arguments("labels", clean) if loss_fn is None else [call.labels], whole)
        if found.misfit:
            say_once(
                "labels",
                f"labels of shape {found.misfit} do not fit predictions of shape {tuple(whole)}: the "
                "consistency loss is averaged over all of them; pass logits_fn= that returns one per label",
            )
        labels = found.labels
        if labels is not None and part.rows is not None:
            labels = part.of(labels.reshape(whole[:-1]))
        parts.append(
            consistency_loss(
                first,
                second,
                labels,
                problem_type=getattr(call.config, "problem_type", None),
                labels_are_shifted=is_shifted and call.labels_are_shifted,
                num_items=divisor,
            )
        )
    return reduce(add, parts) if parts else torch.zeros_like(clean.loss.detach())
