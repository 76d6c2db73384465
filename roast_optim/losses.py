"""Consistency losses between the outputs of the clean and of the adversarial pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import fused_kernels

IGNORED_LABEL = -100


def symmetric_kl(
    logits_p: Tensor, logits_q: Tensor, labels: Tensor | None = None, *, num_items: Tensor | float | None = None
) -> Tensor:
    """KL(p||q) + KL(q||p) of the categorical distributions p = softmax(logits_p) and q = softmax(logits_q).

    Source: section 3.1 of arXiv 2312.04032. Both sides are differentiated; detach one of them to hold it constant. On
    GPUs that triton supports a fused kernel computes it, which can be differentiated once.

    Args:
        logits_p: ``[..., classes]`` of any floating-point dtype. A logit of minus infinity is a class of probability
            zero; where it is one in both, the class adds nothing.
        logits_q: of the same shape.
        labels: ``[...]``, one per distribution: a boolean mask, or integers of which -100 marks a distribution to be
            left out, whatever its logits hold. None: all count.
        num_items: what the sum over the distributions is divided by; None: how many of them count.

    Returns:
        A scalar: float64 if a side is, else float32, in which everything is computed. 0 if no distribution counts.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    _check_same_shape(logits_p, logits_q)
    counted = _counted(labels, logits_p)
    if (kernels := fused_kernels(logits_p, logits_q)) is not None:
        return _average(kernels.symmetric_kl_rows(logits_p, logits_q, counted), counted, num_items)
    logits_p, logits_q = _at_least_float32(logits_p), _at_least_float32(logits_q)
    if counted is not None:  # before the softmax, lest a NaN of a row that is left out reach the gradient
        logits_p = logits_p.masked_fill(~counted.unsqueeze(-1), 0.0)
        logits_q = logits_q.masked_fill(~counted.unsqueeze(-1), 0.0)
    log_p, log_q = F.log_softmax(logits_p, dim=-1), F.log_softmax(logits_q, dim=-1)
    impossible = (log_p == log_q) & log_p.isneginf()
    # Both factors have the same sign, so that rounding never makes the sum negative.
    terms = (log_p.exp() - log_q.exp()) * (log_p - log_q).masked_fill(impossible, 0.0)
    return _average(terms.sum(-1), counted, num_items)


def symmetric_bernoulli_kl(logits_p: Tensor, logits_q: Tensor, *, num_items: Tensor | float | None = None) -> Tensor:
    """KL(p||q) + KL(q||p) of independent binary labels, p = sigmoid(logits_p) and q = sigmoid(logits_q).

    Args:
        logits_p: ``[..., labels]``, of any floating-point dtype.
        logits_q: of the same shape.
        num_items: as in :func:`symmetric_kl`.

    Returns:
        A scalar, as :func:`symmetric_kl`: the sum over the labels, averaged over the leading dimensions.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(logits_p, logits_q)
    logits_p, logits_q = _at_least_float32(logits_p), _at_least_float32(logits_q)
    terms = (logits_p.sigmoid() - logits_q.sigmoid()) * (logits_p - logits_q)
    return _average(terms.sum(-1), None, num_items)


def squared_error(outputs_p: Tensor, outputs_q: Tensor, *, num_items: Tensor | float | None = None) -> Tensor:
    """Mean squared difference of two regression outputs.

    Args:
        outputs_p: ``[..., targets]``, or ``[batch]`` of a single target, of any floating-point dtype.
        outputs_q: of the same shape.
        num_items: as in :func:`symmetric_kl`.

    Returns:
        A scalar, as :func:`symmetric_kl`: the mean over the targets, averaged over the leading dimensions.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(outputs_p, outputs_q)
    outputs_p, outputs_q = _at_least_float32(outputs_p), _at_least_float32(outputs_q)
    squares = (outputs_p - outputs_q).square()
    return _average(squares.mean(-1) if squares.ndim > 1 else squares, None, num_items)


def consistency_loss(
    logits_p: Tensor,
    logits_q: Tensor,
    labels: object,
    *,
    problem_type: str | None = None,
    labels_are_shifted: bool = False,
    num_items: Tensor | float | None = None,
) -> Tensor:
    """The loss of this module that suits a task.

    Args:
        logits_p: ``[..., classes]``, or ``[batch]`` of a regression.
        logits_q: of the same shape.
        labels: of the task loss. Integers, one per distribution, are those of :func:`symmetric_kl`; others are ignored.
        problem_type: as in a config of transformers: "regression", "multi_label_classification", or another for
            exclusive classes. A single output is a regression anyhow.
        labels_are_shifted: a distribution belongs to the label after the one at its place.
        num_items: as in :func:`symmetric_kl`.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if problem_type == "regression" or logits_p.ndim == 1 or logits_p.shape[-1] == 1:
        return squared_error(logits_p, logits_q, num_items=num_items)
    if problem_type == "multi_label_classification":
        return symmetric_bernoulli_kl(logits_p, logits_q, num_items=num_items)
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return symmetric_kl(logits_p, logits_q, num_items=num_items)
    rows = logits_p.shape[:-1]
    if labels.numel() != rows.numel() and labels.ndim != len(rows):  # one label for several distributions
        return symmetric_kl(logits_p, logits_q, num_items=num_items)
    if labels_are_shifted and labels.ndim > 0:
        labels = F.pad(labels[..., 1:], (0, 1), value=IGNORED_LABEL)
    if labels.numel() == rows.numel():
        labels = labels.reshape(rows)
    return symmetric_kl(logits_p, logits_q, labels, num_items=num_items)


def _check_same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim == 0:
        raise ValueError(
            f"the two outputs have shapes {tuple(first.shape)} and {tuple(second.shape)}; "
            "they must be the same and have at least one dimension"
        )


def _at_least_float32(output: Tensor) -> Tensor:
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _counted(labels: Tensor | None, logits: Tensor) -> Tensor | None:
    """Boolean, one per distribution: does it count?"""
    if labels is None:
        return None
    if labels.shape != logits.shape[:-1] or labels.is_floating_point():
        raise ValueError(
            f"labels={labels.dtype} of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}; "
            f"pass a boolean mask or integers of shape {tuple(logits.shape[:-1])}"
        )
    return labels if labels.dtype == torch.bool else labels != IGNORED_LABEL


def _average(rows: Tensor, counted: Tensor | None, num_items: Tensor | float | None) -> Tensor:
    """Sum of the rows (those left out are zero) over ``num_items``, or over how many of them count."""
    if num_items is not None:
        return rows.sum() / num_items
    if counted is None:
        return rows.mean() if rows.numel() else rows.sum()
    return rows.sum() / counted.sum().clamp(min=1)
