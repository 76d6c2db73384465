"""The adversarial perturbation: per token, a step along the gradient, added to the embedding."""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .importance import FLOAT_TYPES, LARGEST_FLOAT32
from .launch import lanes, on, row_options

NORMS = ("linf", "sign", "l2")
INFINITY = tl.constexpr(math.inf)


def perturbed_embedding(
    embedding: Tensor,
    gradient: Tensor,
    step_size: float,
    norm: str,
    *,
    tokens: Tensor | None = None,
    sample_dim: int = 0,
) -> tuple[Tensor, Tensor]:
    """The embedding plus a step of length ``step_size`` along the gradient, token by token.

    Equation: e + step_size * d / max|d| (RoAST, section 3.1), in float32, rounded once to the dtype of the embedding.
    A sample with a single non-finite component gets no perturbation at all; therefore two launches: the first finds the
    largest component of each token, the second adds. The gradient is read twice, for all but the largest batches from
    the L2 cache the second time; the embedding is read and the sum written once.

    Args:
        embedding: ``[batch, tokens, hidden]`` or ``[tokens, batch, hidden]``; float32, bfloat16 or float16.
        gradient: of the same shape; float32, bfloat16 or float16. Its scale does not matter.
        step_size: length of the step of each token in ``norm``; in units of the embeddings.
        norm: "linf": ``d / max|d|``; "sign": ``sign(d)``; "l2": ``d / ||d||``. Zero where the gradient is.
        tokens: boolean, of the shape of the first two dimensions: which tokens to perturb; None: all.
        sample_dim: 0 or 1, the dimension along which the samples of the batch lie.

    Returns:
        The sum, detached, and the number of samples whose gradient is not finite: a scalar, int64, on the device.

    Raises:
        ValueError: other shapes, dtypes, norms or dimensions.
    """
    _check(embedding, gradient, norm, tokens, sample_dim)
    mask = None if tokens is None else tokens.to(gradient.device, torch.uint8)
    rows = [embedding.detach(), gradient.detach()]
    if sample_dim == 1:
        rows = [tensor.transpose(0, 1) for tensor in rows]
        mask = None if mask is None else mask.T
    embedding, gradient = [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in rows]
    batch, length, hidden = gradient.shape
    peaks = torch.empty(batch, length, dtype=torch.float32, device=gradient.device)
    not_finite = torch.zeros((), dtype=torch.int64, device=gradient.device)
    perturbed = torch.empty_like(embedding)
    block = triton.next_power_of_2(hidden)
    options = row_options(block, lanes(gradient.device))
    if gradient.numel():
        with on(gradient.device):
            _peaks_kernel[(batch * length,)](
                gradient, gradient.stride(0), gradient.stride(1), peaks, length, hidden, BLOCK=block, **options
            )
            _perturb_kernel[(batch * length,)](
                embedding,
                embedding.stride(0),
                embedding.stride(1),
                gradient,
                gradient.stride(0),
                gradient.stride(1),
                perturbed,
                perturbed.stride(0),
                perturbed.stride(1),
                mask if mask is None else mask.contiguous(),
                peaks,
                not_finite,
                float(step_size),
                length,
                hidden,
                NORM=norm,
                BLOCK=block,
                LENGTH_BLOCK=triton.next_power_of_2(length),
                **options,
            )
    return (perturbed.transpose(0, 1) if sample_dim == 1 else perturbed), not_finite


def _check(embedding: Tensor, gradient: Tensor, norm: str, tokens: Tensor | None, sample_dim: int) -> None:
    if gradient.ndim != 3 or embedding.shape != gradient.shape or embedding.device != gradient.device:
        raise ValueError(
            f"embedding of shape {tuple(embedding.shape)} on {embedding.device} and gradient of shape "
            f"{tuple(gradient.shape)} on {gradient.device}: both must be [batch, tokens, hidden], on one device"
        )
    if embedding.dtype not in FLOAT_TYPES or gradient.dtype not in FLOAT_TYPES:
        raise ValueError(f"embedding is {embedding.dtype}, gradient {gradient.dtype}; float32, bfloat16, float16 only")
    if tokens is not None and (tokens.shape != gradient.shape[:2] or tokens.dtype != torch.bool):
        raise ValueError(
            f"tokens is {tokens.dtype} of shape {tuple(tokens.shape)}; "
            f"it must be bool of shape {tuple(gradient.shape[:2])}"
        )
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} must be one of {NORMS}")
    if sample_dim not in (0, 1):
        raise ValueError(f"sample_dim={sample_dim} must be 0 or 1")


@triton.jit(do_not_specialize=["length"])
def _peaks_kernel(gradient, sample_stride, token_stride, peaks, length, hidden, BLOCK: tl.constexpr):
    """max|d| of one token; infinity if a component is not finite."""
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    row = gradient + (program // length).to(tl.int64) * sample_stride + (program % length).to(tl.int64) * token_stride
    sizes = tl.abs(tl.load(row + columns, mask=columns < hidden, other=0).to(tl.float32))
    tl.store(peaks + program, tl.max(tl.where(sizes <= LARGEST_FLOAT32, sizes, INFINITY), 0))


@triton.jit(do_not_specialize=["length"])
def _perturb_kernel(
    embedding,
    embedding_sample_stride,
    embedding_token_stride,
    gradient,
    gradient_sample_stride,
    gradient_token_stride,
    perturbed,
    perturbed_sample_stride,
    perturbed_token_stride,
    tokens,
    peaks,
    not_finite,
    step_size,
    length,
    hidden,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
    LENGTH_BLOCK: tl.constexpr,
):
    """One token. Scaled to a largest component of 1 first, so that nothing over- or underflows."""
    program = tl.program_id(0)
    sample = (program // length).to(tl.int64)
    token = (program % length).to(tl.int64)
    positions = tl.arange(0, LENGTH_BLOCK)
    peaks_of_sample = tl.load(peaks + sample * length + positions, mask=positions < length, other=0.0)
    finite = tl.max(peaks_of_sample, 0) < INFINITY
    if (token == 0) & (finite == 0):
        tl.atomic_add(not_finite, 1, sem="relaxed")
    peak = tl.load(peaks + program)
    moved = finite & (peak > 0)
    if tokens is not None:
        moved = moved & (tl.load(tokens + program) != 0)

    columns = tl.arange(0, BLOCK)
    exists = columns < hidden
    row = gradient + sample * gradient_sample_stride + token * gradient_token_stride
    direction = tl.load(row + columns, mask=exists, other=0).to(tl.float32)
    direction = tl.where(moved, tl.div_rn(direction, tl.where(moved, peak, 1.0)), 0.0)
    if NORM == "sign":
        direction = (direction > 0).to(tl.float32) - (direction < 0).to(tl.float32)
    elif NORM == "l2":
        direction = tl.div_rn(direction, tl.maximum(tl.sqrt_rn(tl.sum(direction * direction, 0)), 1.0))
    row = embedding + sample * embedding_sample_stride + token * embedding_token_stride
    sums = tl.load(row + columns, mask=exists, other=0).to(tl.float32) + step_size * direction
    row = perturbed + sample * perturbed_sample_stride + token * perturbed_token_stride
    tl.store(row + columns, sums.to(perturbed.dtype.element_ty), mask=exists)
