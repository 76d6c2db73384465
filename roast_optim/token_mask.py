"""Which rows of an embedding output are tokens and not padding, and which labels belong to the predictions."""

from __future__ import annotations

from collections.abc import Iterable
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

    @property
    def sample_dim(self) -> int:
        """The dimension of the output along which the samples of the batch lie."""
        return 1 if self.tokens_first else 0


def find_tokens(
    masks: Iterable[Any], looked_up: Any, caches: Iterable[Any], shape: torch.Size, tokens_first: bool
) -> TokenMask:
    """Match attention masks with an embedding output.

    The first mask of the output's length counts. A model that pads its tokens inside, to a window, puts the padding
    behind them, where nothing is perturbed. Where keys and values of earlier tokens are given, a longer mask ends with
    that of the tokens. What else a model adds may stand anywhere: then all rows are taken for tokens.

    Args:
        masks: attention masks, the caller's first, then those that parts of the model were called with, from the
            innermost one. Only tensors of two or three dimensions say anything of padding.
        looked_up: the token ids that the word-embedding table was called with; None: it was not.
        caches: keys and values of earlier tokens, or None, of the same calls as the masks.
        shape: of the embedding output, ``[batch, tokens, hidden]`` or ``[tokens, batch, hidden]``.
        tokens_first: which of the two, where the masks leave it open.
    """
    if len(shape) < 3:  # those of all tokens of the batch in a row, without padding
        return TokenMask(None, tokens_first)
    callers: Tensor | None = None
    for mask in masks:
        if isinstance(mask, Tensor) and mask.ndim in (2, 3):
            callers = mask if callers is None else callers
            if (found := _fit(mask, shape, tokens_first)) is not None:
                return found
    if callers is None:
        return TokenMask(None, tokens_first)
    mask = callers.reshape(-1, callers.shape[-1])
    length = shape[0] if tokens_first else shape[1]
    added = length - mask.shape[-1]
    found = None
    if added < 0 and any(cache is not None for cache in caches):
        found = _fit(mask[:, -length:], shape, tokens_first)
    elif added > 0 and isinstance(looked_up, Tensor) and looked_up.shape[0 if tokens_first else -1] == length:
        found = _fit(F.pad(mask, (0, added), value=0), shape, tokens_first)
    return found or TokenMask(None, tokens_first, tuple(callers.shape))


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


def find_labels(given: Iterable[Any], predictions: torch.Size) -> PredictionLabels:
    """Match labels with predictions of shape ``[..., classes]``.

    The first ones of as many elements count: models that lengthen their input, as for soft prompts, lengthen the labels
    as well, and call their inside with them.

    Args:
        given: labels, the caller's first, then those that parts of the model were called with, from the innermost one.
            Only tensors of integers count.
        predictions: the shape of the predictions.
    """
    rows = predictions[:-1]
    callers: Tensor | None = None
    for labels in given:
        if isinstance(labels, Tensor) and not labels.is_floating_point():
            callers = labels if callers is None else callers
            if labels.numel() == rows.numel():
                return PredictionLabels(labels)
    per_row = callers is not None and callers.ndim == len(rows) > 1
    return PredictionLabels(None, tuple(callers.shape) if callers is not None and per_row else None)
