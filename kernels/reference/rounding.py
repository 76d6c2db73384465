"""Stochastic rounding to 16 bits: bfloat16 and float16."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def stochastically_rounded(values: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 values in bfloat16 or float16, rounded up or down at random, so that the expectation is the value.

    A value that lies the fraction f of the way from one number of ``dtype`` to the next, away from zero, becomes that
    next number iff floor(f * 2**16) + bits >= 2**16 (Gupta et al., ICML 2015, section 3, with 16 random bits). What the
    dtype holds exactly stays. A value beyond its largest number is rounded to nearest, to that number or to infinity,
    whatever the bits; NaN and infinity pass.

    Args:
        bits: integers in [0, 2**16), of the shape of ``values``.
    """
    magnitude, bits = values.abs(), bits.to(torch.int32)
    pattern = magnitude.view(torch.int32)
    if dtype == torch.bfloat16:  # the upper half of a float32
        rounded = ((pattern + bits) >> 16 << 16).view(torch.float32)
    else:
        subnormal = magnitude < torch.finfo(torch.float16).tiny  # multiples of 2**-24
        normal = ((pattern + (bits >> 3)) >> 13 << 13).view(torch.float32)
        multiple = ((magnitude.where(subnormal, 0.0) * 2.0**40).to(torch.int32) + bits) >> 16
        rounded = torch.where(subnormal, multiple.to(torch.float32) * 2.0**-24, normal)
    return torch.where(magnitude <= torch.finfo(dtype).max, rounded.copysign(values), values).to(dtype)


def is_narrow(tensor: Tensor) -> bool:
    """Whether the tensor is of a dtype to which values can be rounded stochastically."""
    return tensor.dtype in (torch.bfloat16, torch.float16)


class RoundingBits(NamedTuple):
    """Random numbers in [0, 2**16), made of the one that is drawn for each element (:func:`.draw.draw_halves`).

    Attributes:
        parameter: that number, for the parameter.
        state: the same with its bytes exchanged, for all of its state. So the parameter's rounding hardly depends on
            that of the moments: the probability of any two of their outcomes together is off by 2**-8 at most.
    """

    parameter: Tensor
    state: Tensor
