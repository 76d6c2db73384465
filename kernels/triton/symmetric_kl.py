"""Symmetric KL divergence of two tensors of logits, row by row, without ever writing a probability to memory.

The forward pass reads every logit once (online softmax) and keeps five numbers per row; the backward pass reads every
logit a second time and writes both gradients.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .importance import FLOAT_TYPES, LARGEST_FLOAT32
from .launch import lanes, on, row_options

INFINITY = tl.constexpr(math.inf)
SMALLER = tl.constexpr(2.0**-20)  # for sums of differences, which else overflow before the means that they serve
_FORWARD_BLOCK = 2048
_BACKWARD_BLOCK = 1024
_BLOCKS_PER_PROGRAM = 8  # of the backward pass, in which several programs share a long row


def symmetric_kl_rows(logits_p: Tensor, logits_q: Tensor, counted: Tensor | None = None) -> Tensor:
    """KL(p||q) + KL(q||p) per row, p = softmax(logits_p) and q = softmax(logits_q).

    Source: RoAST, section 3.1. Arithmetic in float32. Differentiable once, with respect to both sides; a side that
    needs no gradient costs none.

    Args:
        logits_p, logits_q: ``[..., classes]`` of equal shape; float32, bfloat16 or float16. A logit of minus infinity
            is a class of probability zero; where it is one in both, the class adds nothing.
        counted: boolean ``[...]``; the other rows give zero and get zero gradients, whatever they hold. None: all
            count.

    Returns:
        float32 ``[...]``.

    Raises:
        ValueError: other shapes or dtypes.
    """
    empty = logits_p.ndim == 0 or logits_p.shape[-1] == 0
    if logits_p.shape != logits_q.shape or empty or logits_p.device != logits_q.device:
        raise ValueError(
            f"logits of shapes {tuple(logits_p.shape)} on {logits_p.device} and {tuple(logits_q.shape)} on "
            f"{logits_q.device}: both must be [..., classes >= 1], on one device"
        )
    if logits_p.dtype not in FLOAT_TYPES or logits_q.dtype not in FLOAT_TYPES:
        raise ValueError(f"logits are {logits_p.dtype} and {logits_q.dtype}; float32, bfloat16 and float16 only")
    if counted is not None and (counted.shape != logits_p.shape[:-1] or counted.dtype != torch.bool):
        raise ValueError(
            f"counted is {counted.dtype} of shape {tuple(counted.shape)}; it must be bool of shape "
            f"{tuple(logits_p.shape[:-1])}"
        )
    divergences: Tensor = _SymmetricKL.apply(logits_p, logits_q, counted)  # type: ignore[no-untyped-call]
    return divergences


class _SymmetricKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_p: Tensor, logits_q: Tensor, counted: Tensor | None) -> Tensor:
        p, q = _rows(logits_p), _rows(logits_q)
        mask = None if counted is None else counted.reshape(-1).to(p.device, torch.uint8)
        rows, classes = p.shape
        divergences = torch.empty(rows, dtype=torch.float32, device=p.device)
        statistics = torch.empty(rows, 5, dtype=torch.float32, device=p.device)
        if rows:
            block = min(_FORWARD_BLOCK, triton.next_power_of_2(classes))
            with on(p.device):
                _forward_kernel[(rows,)](
                    p, p.stride(0), q, q.stride(0), mask, divergences, statistics, classes,
                    BLOCK=block, **row_options(block, lanes(p.device)),
                )  # fmt: skip
        ctx.save_for_backward(p, q, mask, statistics)
        ctx.shape = logits_p.shape
        return divergences.view(logits_p.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        p, q, mask, statistics = ctx.saved_tensors
        rows, classes = p.shape
        grad_p, grad_q = (
            torch.empty(rows, classes, dtype=side.dtype, device=side.device) if needed else None
            for side, needed in zip((p, q), ctx.needs_input_grad[:2], strict=True)
        )
        if rows:
            block = min(_BACKWARD_BLOCK, triton.next_power_of_2(classes))
            parts = triton.cdiv(classes, block * _BLOCKS_PER_PROGRAM)
            with on(p.device):
                _backward_kernel[(rows * parts,)](
                    p, p.stride(0), q, q.stride(0), mask, statistics, upstream.reshape(-1).contiguous(), grad_p, grad_q,
                    classes, parts,
                    BLOCK=block, BLOCKS=_BLOCKS_PER_PROGRAM, **row_options(block, lanes(p.device)),
                )  # fmt: skip
        shaped = [None if grad is None else grad.view(ctx.shape) for grad in (grad_p, grad_q)]
        return shaped[0], shaped[1], None


def _rows(logits: Tensor) -> Tensor:
    """``[rows, classes]`` with the classes of a row side by side."""
    rows = logits.reshape(-1, logits.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


@triton.jit
def _forward_kernel(
    logits_p, p_stride, logits_q, q_stride, counted, divergences, statistics, classes, BLOCK: tl.constexpr
):  # fmt: skip
    """One row. Per side: the largest logit so far and, with e = exp(logit - largest), the sums of e and of e * x.

    x is the difference of the two logits. KL(P||Q) + KL(Q||P) = mean_P x - mean_Q x, to which a constant that all x
    have in common adds nothing. The x of the likeliest class is subtracted: where one class has nearly all the
    probability the means would else cancel.
    """
    program = tl.program_id(0).to(tl.int64)
    row_p = logits_p + program * p_stride
    row_q = logits_q + program * q_stride
    end = classes
    if counted is not None:
        end = tl.where(tl.load(counted + program) != 0, classes, 0)
    shift = 0.0
    largest_p = -LARGEST_FLOAT32
    largest_q = -LARGEST_FLOAT32
    sum_p = tl.zeros([BLOCK], tl.float32)
    sum_q = tl.zeros([BLOCK], tl.float32)
    weighted_p = tl.zeros([BLOCK], tl.float32)
    weighted_q = tl.zeros([BLOCK], tl.float32)
    for start in range(0, end, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        p = tl.load(row_p + columns, mask=columns < classes, other=-INFINITY).to(tl.float32)
        q = tl.load(row_q + columns, mask=columns < classes, other=-INFINITY).to(tl.float32)
        block_p = tl.max(p, 0)
        block_q = tl.max(q, 0)
        if (block_p > largest_p) | (block_q > largest_q):  # seldom after the first blocks: start from the new maxima
            scale_p = tl.exp(largest_p - tl.maximum(largest_p, block_p))
            scale_q = tl.exp(largest_q - tl.maximum(largest_q, block_q))
            largest_p = tl.maximum(largest_p, block_p)
            largest_q = tl.maximum(largest_q, block_q)
            of_largest = tl.max(tl.where(p == largest_p, p - q, -INFINITY), 0)
            before = shift
            shift = tl.where(tl.abs(of_largest) <= LARGEST_FLOAT32, of_largest, before)
            moved = (before - shift) * SMALLER
            weighted_p = scale_p * tl.fma(sum_p, moved, weighted_p)
            weighted_q = scale_q * tl.fma(sum_q, moved, weighted_q)
            sum_p = scale_p * sum_p
            sum_q = scale_q * sum_q
        e_p = tl.exp(p - largest_p)
        e_q = tl.exp(q - largest_q)
        sum_p += e_p
        sum_q += e_q
        # A class without probability adds nothing, whatever its difference.
        difference = (p - q - shift) * SMALLER
        weighted_p += tl.where(e_p > 0, e_p * difference, 0.0)
        weighted_q += tl.where(e_q > 0, e_q * difference, 0.0)
    total_p = tl.sum(sum_p, 0)
    total_q = tl.sum(sum_q, 0)
    mean_p = tl.sum(weighted_p, 0) / total_p / SMALLER
    mean_q = tl.sum(weighted_q, 0) / total_q / SMALLER
    divergence = tl.maximum(mean_p - mean_q, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(divergences + program, tl.where(end > 0, divergence, 0.0))
    statistics += 5 * program
    tl.store(statistics, largest_p + tl.log(total_p))
    tl.store(statistics + 1, largest_q + tl.log(total_q))
    tl.store(statistics + 2, shift)
    tl.store(statistics + 3, mean_p)
    tl.store(statistics + 4, mean_q)


@triton.jit
def _backward_kernel(
    logits_p, p_stride, logits_q, q_stride, counted, statistics, upstream, grad_p, grad_q, classes, parts,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """A part of one row. With x the difference of the logits and its means under P and Q, as in the forward pass:

    d/dp_k = P_k (x_k - mean_P x) + P_k - Q_k,  d/dq_k = Q_k (mean_Q x - x_k) + Q_k - P_k.
    """
    program = tl.program_id(0)
    row = (program // parts).to(tl.int64)
    scale = tl.load(upstream + row)
    statistics += 5 * row
    log_total_p = tl.load(statistics)
    log_total_q = tl.load(statistics + 1)
    shift = tl.load(statistics + 2)
    mean_p = tl.load(statistics + 3)
    mean_q = tl.load(statistics + 4)
    counts = True
    if counted is not None:
        counts = tl.load(counted + row) != 0
    first = (program % parts) * (BLOCKS * BLOCK)
    for start in range(first, tl.minimum(first + BLOCKS * BLOCK, classes), BLOCK):
        columns = start + tl.arange(0, BLOCK)
        exists = columns < classes
        logit_p = tl.load(logits_p + row * p_stride + columns, mask=exists, other=0).to(tl.float32)
        logit_q = tl.load(logits_q + row * q_stride + columns, mask=exists, other=0).to(tl.float32)
        p = tl.exp(logit_p - log_total_p)
        q = tl.exp(logit_q - log_total_q)
        difference = logit_p - logit_q - shift
        if grad_p is not None:
            slope = tl.where(p == 0, 0.0, p * (difference - mean_p)) + (p - q)
            slope = tl.where(counts, scale * slope, 0.0).to(grad_p.dtype.element_ty)
            tl.store(grad_p + row * classes + columns, slope, mask=exists)
        if grad_q is not None:
            slope = tl.where(q == 0, 0.0, q * (mean_q - difference)) + (q - p)
            slope = tl.where(counts, scale * slope, 0.0).to(grad_q.dtype.element_ty)
            tl.store(grad_q + row * classes + columns, slope, mask=exists)
