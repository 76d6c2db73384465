"""A step that multiplies its gradients is the step of gradients that were multiplied before, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.devices import on_device
from tests.support.differences import first_difference
from tests.support.steps import Step, assert_same_tensors, random_step, selection

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FACTORS: dict[str, float | Tensor] = {
    "number": -0.3,
    "overflowing": 3e4,
    "tensor": torch.tensor(0.7),
    "tensor of float64": torch.tensor(1 / 3, dtype=torch.float64),
    "not a number": torch.tensor(math.nan),
}
CASES = [(factor, "gradient") for factor in FACTORS] + [("tensor", "update"), ("number", None)]


def every_kind(dtype: torch.dtype) -> Tensor:
    """Gradients of all sizes, and those that are not finite."""
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(700, generator=generator) * 10.0 ** torch.randint(-44, 38, (700,), generator=generator)
    values[:6] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, torch.finfo(dtype).max])
    return values.to(dtype)


def multiplied(grad: Tensor, factor: float | Tensor) -> Tensor:
    """The product in float32, rounded to the dtype of the gradient by torch's conversion."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = grad.float().numpy() * np.float32(float(factor))
    return torch.from_numpy(product).to(grad.dtype)


def pair(dtype: torch.dtype, factor: float | Tensor, **options: Any) -> tuple[Step, Step]:
    """A step with the factor, and one whose gradients were multiplied before."""
    step = random_step([(700,), (3, 40)], dtype=dtype, moment_dtype=torch.float32, **options)
    step.change(grad=every_kind(dtype))
    expected = step.copy()
    for row in expected.rows:
        assert row.grad is not None
        row.grad = multiplied(row.grad, factor)
    step.set(gradient_factor=factor)
    return step, expected


@every_dtype
@pytest.mark.parametrize(("name", "acts_on"), CASES)
def test_it_is_the_step_of_multiplied_gradients(
    name: str, acts_on: str | None, dtype: torch.dtype, device_backend: str
) -> None:
    factor = FACTORS[name]
    chosen = None if acts_on is None else selection(acts_on=acts_on)
    step, expected = pair(dtype, factor, selection=chosen, maximize=acts_on == "update")
    grads = [row.grad.clone() for row in step.rows if row.grad is not None]
    for each in (step, expected):
        each.run(on_device(device_backend))
    assert_same_tensors(step, expected, [name for name in step.names if name != "grad"])
    for row, grad in zip(step.rows, grads, strict=True):
        assert row.grad is not None
        assert first_difference(row.grad, grad) is None


@every_dtype
def test_importance_is_that_of_the_product_in_its_dtype(dtype: torch.dtype, device_backend: str) -> None:
    step, expected = pair(dtype, 0.3, selection=None)
    before = [row.importance.numpy().copy() for row in step.rows if row.importance is not None]
    step.run(on_device(device_backend))
    for row, other, old in zip(step.rows, expected.rows, before, strict=True):
        assert other.grad is not None
        assert row.importance is not None
        g = other.grad.float().numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            square = np.where(np.isfinite(g), g * g, np.float32(0))
            total = np.minimum(old + square, np.finfo(np.float32).max)
        np.testing.assert_array_equal(row.importance.numpy(), total)


def test_gradients_of_float64_are_multiplied_in_float64(device_backend: str) -> None:
    step, _ = pair(torch.float32, 1.0)
    names = ("param", "grad", "exp_avg", "exp_avg_sq")
    for row in step.rows:
        for name in names:
            setattr(row, name, getattr(row, name).double())
    expected = step.copy()
    for row in expected.rows:
        row.grad = row.grad * 0.3  # type: ignore[operator]
    step.set(gradient_factor=0.3)
    for each in (step, expected):
        each.run(on_device(device_backend))
    assert_same_tensors(step, expected, [name for name in step.names if name != "grad"])
