"""A step along the gradient, token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from roast_optim.perturbation import NORMS, perturbation, perturbed_embedding, relative_length, row_lengths

norms = pytest.mark.parametrize("norm", NORMS)


def some_gradient(seed: int = 0) -> Tensor:
    return torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed))


def length(step: Tensor, norm: str) -> Tensor:
    return step.norm(dim=-1) if norm == "l2" else step.abs().amax(-1)


@norms
@pytest.mark.parametrize("step_size", [0.1, 3.0])
def test_every_token_moves_by_the_step_size_uphill(norm: str, step_size: float) -> None:
    gradient = some_gradient()
    step, nonfinite = perturbation(gradient, step_size, norm)
    torch.testing.assert_close(length(step, norm), torch.full((3, 4), step_size))
    assert ((step * gradient).sum(-1) > 0).all()
    assert nonfinite == 0
    if norm == "sign":
        assert torch.equal(step, step_size * gradient.sign())
    else:
        torch.testing.assert_close(torch.cosine_similarity(step, gradient, dim=-1), torch.ones(3, 4))


@norms
@given(exponent=st.integers(-120, 120))
def test_the_scale_of_the_gradient_does_not_matter(norm: str, exponent: int) -> None:
    gradient = some_gradient()
    step, _ = perturbation(gradient * 2.0**exponent, 0.1, norm)
    assert torch.equal(step, perturbation(gradient, 0.1, norm)[0])


@norms
@pytest.mark.parametrize("value", [1e-45, 1e-38, 3e38])
def test_the_smallest_and_largest_gradients_count(norm: str, value: float) -> None:
    gradient = torch.tensor([[[value, 0.0], [0.0, -value]]])
    step, nonfinite = perturbation(gradient, 0.5, norm)
    assert torch.equal(step, torch.tensor([[[0.5, 0.0], [0.0, -0.5]]]))
    assert nonfinite == 0


@norms
def test_a_token_without_gradient_does_not_move(norm: str) -> None:
    gradient = some_gradient()
    gradient[1, 2] = 0.0
    step, _ = perturbation(gradient, 0.1, norm)
    assert not step[1, 2].any()
    assert length(step, norm).count_nonzero() == 11


@norms
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("sample_dim", [0, 1])
def test_a_sample_with_a_value_that_is_not_finite_does_not_move_and_is_counted(
    norm: str, value: float, sample_dim: int
) -> None:
    gradient = some_gradient().movedim(0, sample_dim).contiguous()
    gradient.select(sample_dim, 1)[2, 3] = value
    step, nonfinite = perturbation(gradient, 0.1, norm, sample_dim=sample_dim)
    assert nonfinite == 1
    assert length(step, norm).movedim(sample_dim, 0).count_nonzero(1).tolist() == [4, 0, 4]
    assert step.isfinite().all()


@norms
def test_tokens_outside_the_mask_do_not_move(norm: str) -> None:
    tokens = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    step, _ = perturbation(some_gradient(), 0.1, norm, tokens=tokens)
    assert torch.equal(length(step, norm) > 0, tokens)


def test_a_step_of_zero_is_zero() -> None:
    assert not perturbation(some_gradient(), 0.0, "linf")[0].any()


def test_rows_of_two_dimensions_are_samples() -> None:
    gradient = torch.tensor([[1.0, 2.0], [float("nan"), 0.0]])
    step, nonfinite = perturbation(gradient, 1.0, "linf")
    assert step.tolist() == [[0.5, 1.0], [0.0, 0.0]]
    assert nonfinite == 1


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_relative_step_is_a_share_of_each_embedding(norm: str, dtype: torch.dtype) -> None:
    embedding = (some_gradient(1) * torch.tensor([1e-3, 0.0, 1.0, 50.0]).unsqueeze(-1)).to(dtype)
    gradient = some_gradient().to(torch.promote_types(dtype, torch.float32))
    tokens = torch.ones(3, 4, dtype=torch.bool)
    tokens[2, 3] = False
    moved, _ = perturbed_embedding(embedding, gradient, 0.25, norm, scale="relative", tokens=tokens)
    assert moved.dtype == dtype
    shares = row_lengths(moved.double() - embedding.double()) / row_lengths(embedding.double()).clamp(min=1e-30)
    expected = torch.where(tokens, 0.25, 0.0)
    expected[:, 1] = 0.0  # an embedding of zeros has no length
    tolerance = {torch.bfloat16: 0.02, torch.float32: 1e-5, torch.float64: 1e-9}[dtype]
    torch.testing.assert_close(shares.squeeze(-1), expected.double(), rtol=tolerance, atol=tolerance)


@norms
def test_a_relative_step_has_the_direction_of_an_absolute_one(norm: str) -> None:
    gradient = some_gradient()
    absolute, _ = perturbation(gradient, 0.1, norm)
    relative, _ = perturbation(gradient, 0.1, norm, lengths=torch.rand(3, 4, 1) + 1)
    torch.testing.assert_close(torch.cosine_similarity(absolute, relative, dim=-1), torch.ones(3, 4))


@norms
@given(exponent=st.integers(-120, 120))
def test_a_relative_step_does_not_depend_on_the_scale_of_the_gradient(norm: str, exponent: int) -> None:
    lengths = row_lengths(some_gradient(1))
    step, _ = perturbation(some_gradient() * 2.0**exponent, 0.1, norm, lengths=lengths)
    assert torch.equal(step, perturbation(some_gradient(), 0.1, norm, lengths=lengths)[0])


def test_the_relative_length_is_that_of_the_tokens_that_moved() -> None:
    embedding = torch.tensor([[[3.0, 4.0], [100.0, 0.0]]])
    moved = embedding + torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    assert relative_length(moved, embedding) == pytest.approx(0.2)
    assert relative_length(embedding, embedding) == 0.0
