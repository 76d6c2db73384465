"""From the gradient of the task loss to the perturbation of the embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import fused_kernels

NORMS = ("linf", "sign", "l2")
SCALES = ("absolute", "relative")


def perturbed_embedding(
    embedding: Tensor,
    gradient: Tensor,
    step_size: float,
    norm: str,
    *,
    scale: str = "absolute",
    lengths: Tensor | None = None,
    tokens: Tensor | None = None,
    sample_dim: int = 0,
) -> tuple[Tensor, Tensor]:
    """The embedding plus its :func:`perturbation`, rounded once to the embedding's dtype.

    On GPUs a fused kernel computes it, unless the scale is relative.

    Args:
        embedding: of the gradient's shape, without a gradient.
        gradient, step_size, norm, tokens, sample_dim: as in :func:`perturbation`.
        scale: "absolute": ``step_size`` is in units of the embeddings. "relative": it is the share of each token's own
            embedding length that the perturbation has, both in the l2 norm.
        lengths: those lengths, if they are not the embedding's, as :func:`row_lengths` returns them.

    Returns:
        The sum, and the number of samples whose gradient is not finite: a scalar, int64.
    """
    if scale == "relative" and lengths is None:
        lengths = row_lengths(embedding)
    kernels = fused_kernels(embedding, gradient) if gradient.ndim == 3 and lengths is None else None
    if kernels is not None:
        perturbed, nonfinite_samples = kernels.perturbed_embedding(
            embedding, gradient, step_size, norm, tokens=tokens, sample_dim=sample_dim
        )
        return perturbed, nonfinite_samples
    step, nonfinite_samples = perturbation(
        gradient, step_size, norm, lengths=lengths, tokens=tokens, sample_dim=sample_dim
    )
    return (embedding + step).to(embedding.dtype), nonfinite_samples


def perturbation(
    gradient: Tensor,
    step_size: float,
    norm: str,
    *,
    lengths: Tensor | None = None,
    tokens: Tensor | None = None,
    sample_dim: int = 0,
) -> tuple[Tensor, Tensor]:
    """A step of length ``step_size`` along the gradient, token by token (section 3.1 of arXiv 2312.04032).

    Args:
        gradient: ``[..., hidden]``, a row per token. Its scale does not matter.
        step_size: length of the step of each token in ``norm``; in units of the embeddings.
        norm: "linf": ``d / max|d|``; "sign": ``sign(d)``; "l2": ``d / ||d||``. Zero where the gradient is.
        lengths: ``[..., 1]``; if given, the l2 length of each token's step is ``step_size`` times its length, and
            ``norm`` gives the step its direction only.
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
    if norm == "l2" or lengths is not None:
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1.0)
    if lengths is not None:
        direction = (direction * lengths).to(gradient.dtype)
    return step_size * direction, finite.logical_not().sum()


def row_lengths(embedding: Tensor) -> Tensor:
    """The l2 length of each token's embedding, ``[..., 1]``; float32, or float64 if the embedding is."""
    dtype = torch.promote_types(embedding.dtype, torch.float32)
    lengths: Tensor = torch.linalg.vector_norm(embedding, dim=-1, keepdim=True, dtype=dtype)
    return lengths


def relative_length(perturbed: Tensor, embedding: Tensor) -> float:
    """How long the perturbation is, as a share of the embeddings of the tokens that are perturbed; 0 if none is.

    The root of the mean square of one over that of the other. Waits for the device.
    """
    steps, lengths = row_lengths(perturbed.float() - embedding.float()), row_lengths(embedding)
    total = lengths.where(steps > 0, 0.0).square().sum()
    share = (steps.square().sum() / total).sqrt()
    return float(torch.where(total > 0, share, 0.0))


def noise_step(
    embedding: Tensor,
    noise: Tensor,
    step_size: float,
    norm: str,
    *,
    scale: str = "absolute",
    tokens: Tensor | None = None,
) -> Tensor:
    """A step of length ``step_size`` in a random direction, token by token.

    Args:
        embedding: ``[..., hidden]``.
        noise: of its shape, uniform in [-1, 1).
        step_size: in units of ``scale``.
        norm: "linf": the noise as it is; "sign": its signs; "l2": ``noise / ||noise||``.
        scale, tokens: as in :func:`perturbed_embedding` and :func:`perturbation`.
    """
    direction = noise.sign() if norm == "sign" else noise
    if norm == "l2" or scale == "relative":
        length = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        direction = direction / length.clamp(min=torch.finfo(noise.dtype).tiny)
    if scale == "relative":
        direction = direction * row_lengths(embedding)
    return step_size * (direction if tokens is None else direction * tokens.unsqueeze(-1))
