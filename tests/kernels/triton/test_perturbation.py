"""The perturbed embedding against its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from roast_optim.kernels.triton import perturbation
from tests.support.devices import differentiably_placed, placed

STEP_SIZE = 0.1


def perturbed_embedding(
    embedding: Tensor, gradient: Tensor, step_size: float, norm: str, tokens: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """The kernel's, on the device of the tests."""
    tokens = None if tokens is None else placed(tokens)
    perturbed, not_finite = perturbation.perturbed_embedding(
        differentiably_placed(embedding), placed(gradient), step_size, norm, tokens=tokens, **options
    )
    return perturbed.cpu(), not_finite.cpu()


def defined(embedding: Tensor, gradient: Tensor, norm: str, tokens: Tensor) -> Tensor:
    """The embedding plus step * d / max|d|, or what the norm asks for, token by token, in float64."""
    result = embedding.double()
    for i in range(gradient.shape[0]):
        for j in range(gradient.shape[1]):
            d = gradient[i, j].double()
            length = {"linf": d.abs().max(), "sign": d.abs().max(), "l2": d.norm()}[norm]
            if tokens[i, j] and length > 0:
                result[i, j] += STEP_SIZE * (d.sign() if norm == "sign" else d / length)
    return result


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", ["linf", "sign", "l2"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 48), (2, 7, 100), (2, 3, 768)], ids=str)
@pytest.mark.parametrize("sample_dim", [0, 1])
def test_every_norm_and_layout(shape: tuple[int, ...], norm: str, sample_dim: int) -> None:
    embedding, gradient = random(*shape), random(*shape, seed=1)
    gradient[0, 0] = 0
    tokens = random(*shape[:2], seed=2) > -0.5
    perturbed, not_finite = perturbed_embedding(
        embedding, gradient, STEP_SIZE, norm, tokens=tokens, sample_dim=sample_dim
    )  # fmt: skip
    torch.testing.assert_close(perturbed.double(), defined(embedding, gradient, norm, tokens), rtol=1e-6, atol=1e-7)
    assert perturbed.dtype == torch.float32
    assert not_finite.dtype == torch.int64
    assert not_finite == 0


@pytest.mark.parametrize("norm", ["linf", "sign", "l2"])
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30, 3e37])
def test_the_scale_of_the_gradient_does_not_matter(norm: str, scale: float) -> None:
    embedding, gradient = torch.zeros(2, 3, 32), random(2, 3, 32) * scale
    perturbed, _ = perturbed_embedding(embedding, gradient, STEP_SIZE, norm)
    expected = defined(embedding, gradient, norm, torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(perturbed.double(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sample_dim", [0, 1])
def test_a_sample_with_a_gradient_that_is_not_finite_is_counted_and_left_alone(sample_dim: int) -> None:
    embedding, gradient = random(4, 5, 16), random(4, 5, 16, seed=1)
    for sample, value in ((0, math.nan), (2, math.inf), (3, -math.inf)):
        gradient.select(sample_dim, sample)[3, 7] = value
    perturbed, not_finite = perturbed_embedding(embedding, gradient, STEP_SIZE, "linf", sample_dim=sample_dim)
    assert not_finite == 3
    for sample in (0, 2, 3):
        assert torch.equal(perturbed.select(sample_dim, sample), embedding.select(sample_dim, sample))
    moved = (perturbed - embedding).select(sample_dim, 1).abs().amax(-1)
    torch.testing.assert_close(moved, torch.full_like(moved, STEP_SIZE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    embedding, gradient = random(2, 3, 40).to(dtype), random(2, 3, 40, seed=1).to(dtype)
    perturbed, _ = perturbed_embedding(embedding, gradient, STEP_SIZE, "linf")
    exact = defined(embedding, gradient, "linf", torch.ones(2, 3, dtype=torch.bool))
    assert perturbed.dtype == dtype
    # half a unit in the last place, and float32's own rounding before it
    torch.testing.assert_close(perturbed.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=0.0)


def test_strided_tensors_and_no_gradient() -> None:
    embedding = random(6, 5, 32)[::2, 1:].requires_grad_()
    gradient = random(4, 32, 3).permute(2, 0, 1)
    perturbed, _ = perturbed_embedding(embedding, gradient, STEP_SIZE, "l2")
    expected = defined(embedding.detach(), gradient, "l2", torch.ones(3, 4, dtype=torch.bool))
    torch.testing.assert_close(perturbed.double(), expected, rtol=1e-6, atol=1e-7)
    assert not perturbed.requires_grad


def test_an_empty_batch() -> None:
    perturbed, not_finite = perturbed_embedding(torch.zeros(0, 3, 8), torch.zeros(0, 3, 8), STEP_SIZE, "linf")
    assert perturbed.shape == (0, 3, 8)
    assert not_finite == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient": torch.zeros(2, 3, 5)}, "both must be"),
        ({"embedding": torch.zeros(2, 3, 4).double()}, "embedding is torch.float64"),
        ({"tokens": torch.ones(2, 3)}, "must be bool of shape"),
        ({"norm": "l1"}, "norm='l1' must be one of"),
        ({"sample_dim": 2}, "sample_dim=2 must be 0 or 1"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    arguments = {"embedding": torch.zeros(2, 3, 4), "gradient": torch.zeros(2, 3, 4), "step_size": 0.1, "norm": "linf"}
    with pytest.raises(ValueError, match=message):
        perturbed_embedding(**{**arguments, **changes})
