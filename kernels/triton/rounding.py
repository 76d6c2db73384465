"""Stochastic rounding to 16 bits: :func:`..reference.stochastically_rounded` bit for bit."""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .pointer_table import store

_LARGEST_BFLOAT16 = tl.constexpr(torch.finfo(torch.bfloat16).max)
_LARGEST_FLOAT16 = tl.constexpr(torch.finfo(torch.float16).max)
_SMALLEST_NORMAL_FLOAT16 = tl.constexpr(torch.finfo(torch.float16).tiny)


@triton.jit
def store_rounded(pointers, values, bits, mask, STOCHASTIC: tl.constexpr, MASKED: tl.constexpr):
    """Write a block of float32 values in the dtype of the tensor: by ``bits`` if STOCHASTIC, else to nearest.

    Without STOCHASTIC ``bits`` may be anything.
    """
    if STOCHASTIC:
        if pointers.dtype.element_ty == tl.bfloat16:
            values = _stochastically_bfloat16(values, bits)
        elif pointers.dtype.element_ty == tl.float16:
            values = _stochastically_float16(values, bits)
    store(pointers, values, mask, MASKED)


@triton.jit
def _stochastically_bfloat16(values, bits):
    """What the values become, still in float32, from which the conversion is then exact."""
    pattern = (values.to(tl.uint32, bitcast=True) + bits) & 0xFFFF0000
    return tl.where(tl.abs(values) <= _LARGEST_BFLOAT16, pattern.to(tl.float32, bitcast=True), values)


@triton.jit
def _stochastically_float16(values, bits):
    pattern = (values.to(tl.uint32, bitcast=True) + (bits >> 3)) & 0xFFFFE000
    rounded = pattern.to(tl.float32, bitcast=True)
    magnitude = tl.abs(values)
    is_subnormal = magnitude < _SMALLEST_NORMAL_FLOAT16  # multiples of 2**-24
    multiple = (tl.where(is_subnormal, magnitude, 0.0) * 1099511627776.0).to(tl.int32) + bits.to(tl.int32)
    smallest = (multiple >> 16).to(tl.float32) * 5.9604644775390625e-08
    rounded = tl.where(is_subnormal, tl.where(values < 0, -smallest, smallest), rounded)
    return tl.where(magnitude <= _LARGEST_FLOAT16, rounded, values)
