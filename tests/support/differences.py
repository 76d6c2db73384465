"""Where two tensors differ, in words, and by how many units of the last place."""

from __future__ import annotations

import torch
from torch import Tensor

UNITS = "units of "  # how a property of a test begins that tells a largest difference
# The largest differences that `record_units` was told in this test, by name.
LARGEST_UNITS: dict[str, float] = {}
_INTEGERS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16}
_INTEGERS[torch.float16] = torch.int16


def units_apart(actual: Tensor, expected: Tensor, scale: Tensor) -> float:
    """The largest difference in units of the last place that numbers as large as ``scale`` have; NaN and inf apart."""
    magnitude = scale.abs().clamp(min=torch.finfo(scale.dtype).tiny)
    following = (magnitude.view(_INTEGERS[scale.dtype]) + 1).view(scale.dtype)
    units = (actual.double() - expected.double()).abs() / (following.double() - magnitude.double())
    units = units[units.isfinite()]
    return float(units.max()) if units.numel() else 0.0


def record_units(name: str, actual: Tensor, expected: Tensor, scale: Tensor) -> None:
    """Keep the largest difference of that name, for the summary of the run; see :func:`units_apart`."""
    name = f"{name}, {str(expected.dtype).removeprefix('torch.')}"
    LARGEST_UNITS[name] = max(LARGEST_UNITS.get(name, 0.0), units_apart(actual, expected, scale))


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
