"""From the gradient of the task loss to the perturbation of the embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import fused_kernels

NORMS = ("linf", "sign", "l2")


def perturbed_embedding(
    embedding: Tensor,
    gradient: Tensor,
    step_size: float,
    norm: str,
    *,
    tokens: Tensor | None = None,
    sample_dim: int = 0,
) -> tuple[Tensor, Tensor]:
    """The embedding plus its :func:`perturbation`, rounded once to the embedding's dtype, by a fused kernel on GPUs.

    Args:
        embedding: of the gradient's shape, without a gradient.
        gradient, step_size, norm, tokens, sample_dim: as in :func:`perturbation`.

    Returns:
        The sum, and the number of samples whose gradient is not finite: a scalar, int64.
    """
    kernels = fused_kernels(embedding, gradient) if gradient.ndim == 3 else None
    if kernels is not None:
        perturbed, nonfinite_samples = kernels.perturbed_embedding(
            embedding, gradient, step_size, norm, tokens=tokens, sample_dim=sample_dim
        )
        return perturbed, nonfinite_samples
    step, nonfinite_samples = perturbation(gradient, step_size, norm, tokens=tokens, sample_dim=sample_dim)
    return (embedding + step).to(embedding.dtype), nonfinite_samples


def perturbation(
    gradient: Tensor, step_size: float, norm: str, *, tokens: Tensor | None = None, sample_dim: int = 0
) -> tuple[Tensor, Tensor]:
    """A step of length ``step_size`` along the gradient, token by token (section 3.1 of arXiv 2312.04032).

    Args:
        gradient: ``[..., hidden]``, a row per token. Its scale does not matter.
        step_size: length of the step of each token in ``norm``; in units of the embeddings.
        norm: "linf": ``d / max|d|``; "sign": ``sign(d)``; "l2": ``d / ||d||``. Zero where the gradient is.
        tokens: boolean ``[...]``: which tokens to perturb; None: all.
        sample_dim: the dimension along which the samples of the batch lie.

    Returns:
        The perturbation, of the gradient's shape and dtype, and the number of samples whose gradient is not finite: a
        scalar, int64. Such a sample gets no perturbation.
    """
    peak = gradient.abs().amax(-1, keepdim=True)
    other_dims = [dim for dim in range(gradient.ndim) if dim != sample_dim % gradient.ndim]
    finite = peak.isfinite()
    for dim in other_dims:
        finite = finite.all(dim, keepdim=True)
    moved = finite & (peak > 0)
    if tokens is not None:
        moved = moved & tokens.unsqueeze(-1)
    # Scaled to a largest component of 1 first, so that nothing over- or underflows. where, as NaN * 0 is NaN.
    direction = torch.where(moved, gradient / peak.where(moved, 1.0), 0.0)
    if norm == "sign":
        direction = direction.sign()
    elif norm == "l2":
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1.0)
    return step_size * direction, finite.logical_not().sum()


def token_mask(attention_mask: Tensor, shape: torch.Size, tokens_first: bool) -> tuple[Tensor, bool]:
    """Which rows of an embedding output are tokens and not padding.

    Args:
        attention_mask: ``[batch, tokens]``, 0 for padding. The leading dimensions of several sequences per sample
            (``[batch, choices, tokens]``) are flattened, as models do.
        shape: of the embedding output, ``[batch, tokens, hidden]`` or ``[tokens, batch, hidden]``.
        tokens_first: which of the two, where the mask leaves it open.

    Returns:
        A boolean mask of shape ``shape[:2]``, and whether tokens come first.

    Raises:
        ValueError: the mask fits neither.
    """
    mask = attention_mask.reshape(-1, attention_mask.shape[-1]) != 0
    layouts = [layout for layout in (tokens_first, not tokens_first) if (mask.T if layout else mask).shape == shape[:2]]
    if not layouts:
        raise ValueError(
            f"attention_mask of shape {tuple(attention_mask.shape)} does not fit an embedding output of shape "
            f"{tuple(shape)}; pass one of shape [batch, tokens], 0 for padding"
        )
    return (mask.T if layouts[0] else mask), layouts[0]
