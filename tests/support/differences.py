"""Where two tensors differ, in words."""

from __future__ import annotations

import torch
from torch import Tensor


def first_difference(actual: Tensor, expected: Tensor, tolerance: Tensor | float = 0.0) -> str | None:
    """The first element, in row-major order, that is further than the tolerance from what is expected.

    NaN equals NaN. None if there is none; dtypes and shapes must agree.
    """
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return f"{actual.dtype} of shape {tuple(actual.shape)}, not {expected.dtype} of shape {tuple(expected.shape)}"
    alike = (
        (actual == expected) | ((actual - expected).abs() <= tolerance) if _can_subtract(actual) else actual == expected
    )
    differing = ~(alike | (actual != actual) & (expected != expected))
    if not differing.any():
        return None
    index = tuple(differing.nonzero()[0].tolist())
    return (
        f"{int(differing.sum())} of {differing.numel()} elements differ, first {list(index)}: "
        f"{actual[index].item()!r}, not {expected[index].item()!r}"
    )


def _can_subtract(tensor: Tensor) -> bool:
    return tensor.dtype not in (torch.bool, torch.uint8)
