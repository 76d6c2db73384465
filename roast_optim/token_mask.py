"""Which rows of an embedding output are tokens and not padding, and which labels belong to the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TokenMask:
    """What is known of the rows of an embedding output.

    Attributes:
        tokens: boolean, of the shape of its first two dimensions; None: all are taken for tokens.
        tokens_first: the output is ``[tokens, batch, hidden]``.
        misfit: the shape of a mask that could not be matched with the output; None: there was none.
    """

    tokens: Tensor | None
    tokens_first: bool
    misfit: tuple[int, ...] | None = None


def find_tokens(masks: Sequence[Any], looked_up: Any, cached: bool, shape: torch.Size, tokens_first: bool) -> TokenMask:
    """Match attention masks with an embedding output.

    The first mask of the output's length counts. A model that pads its tokens inside, to a window, puts the padding
    behind them, where nothing is perturbed. Where keys and values of earlier tokens are given, a longer mask ends with
    that of the tokens. What else a model adds may stand anywhere: then all rows are taken for tokens.

    Args:
        masks: attention masks, the caller's first, then those that parts of the model were called with, from the
            innermost one. Only tensors of two or three dimensions say anything of padding.
        looked_up: the token ids that the word-embedding table was called with; None: it was not.
        cached: whether keys and values of earlier tokens were given.
        shape: of the embedding output, ``[batch, tokens, hidden]`` or ``[tokens, batch, hidden]``.
        tokens_first: which of the two, where the masks leave it open.
    """
    known = [mask for mask in masks if isinstance(mask, Tensor) and mask.ndim in (2, 3)]
    if not known or len(shape) < 3:  # two dimensions: those of all tokens of the batch in a row, without padding
        return TokenMask(None, tokens_first)
    for mask in known:
        found = _fit(mask, shape, tokens_first)
        if found is not None:
            return found
    mask = known[0].reshape(-1, known[0].shape[-1])
    length = shape[0] if tokens_first else shape[1]
    added = length - mask.shape[-1]
    found = None
    if added < 0 and cached:
        found = _fit(mask[:, -length:], shape, tokens_first)
    elif added > 0 and isinstance(looked_up, Tensor) and looked_up.shape[0 if tokens_first else -1] == length:
        found = _fit(F.pad(mask, (0, added), value=0), shape, tokens_first)
    return found or TokenMask(None, tokens_first, tuple(known[0].shape))


def _fit(attention_mask: Tensor, shape: torch.Size, tokens_first: bool) -> TokenMask | None:
    """The mask in the layout of the output; None if it has another shape.

    The leading dimensions of several sequences per sample (``[batch, choices, tokens]``) are flattened, as models do.
    """
    mask = attention_mask.reshape(-1, attention_mask.shape[-1]) != 0
    for layout in (tokens_first, not tokens_first):
        samples = shape[1 if layout else 0]
        whole = mask.expand(samples, -1) if len(mask) == 1 else mask  # one for all samples
        laid_out = whole.T if layout else whole
        if laid_out.shape == shape[:2]:
            return TokenMask(laid_out, layout)
    return None


@dataclass(frozen=True)
class PredictionLabels:
    """What is known of the labels of some predictions.

    Attributes:
        labels: one per prediction; None: there are none, or not one per prediction.
        misfit: the shape of labels that are per token and could not be matched; None: there were none.
    """

    labels: Tensor | None
    misfit: tuple[int, ...] | None = None


def find_labels(given: Sequence[Any], predictions: torch.Size) -> PredictionLabels:
    """Match labels with predictions of shape ``[..., classes]``.

    The first ones of as many elements count: models that lengthen their input, as for soft prompts, lengthen the labels
    as well, and call their inside with them.

    Args:
        given: labels, the caller's first, then those that parts of the model were called with, from the innermost one.
            Only tensors of integers count.
        predictions: the shape of the predictions.
    """
    known = [labels for labels in given if isinstance(labels, Tensor) and not labels.is_floating_point()]
    rows = predictions[:-1]
    for labels in known:
        if labels.numel() == rows.numel():
            return PredictionLabels(labels)
    per_row = bool(known) and known[0].ndim == len(rows) > 1
    return PredictionLabels(None, tuple(known[0].shape) if per_row else None)
