"""The consistency losses: values against the definition, gradients, precision, and what is left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence

from roast_optim.losses import consistency_loss, squared_error, symmetric_bernoulli_kl, symmetric_kl


def two(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (scale * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return first.to(dtype), second.to(dtype)


def divergence(p: Tensor, q: Tensor, family: Any = Categorical) -> Tensor:
    """KL(p||q) + KL(q||p) of each distribution, by torch.distributions."""
    first, second = family(logits=p.double()), family(logits=q.double())
    return kl_divergence(first, second) + kl_divergence(second, first)


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 7), (2, 2), (9,)])
def test_equals_the_definition(shape: tuple[int, ...]) -> None:
    p, q = two(*shape)
    torch.testing.assert_close(symmetric_kl(p, q), divergence(p, q).mean().float())


def test_is_symmetric_and_zero_between_equal_distributions() -> None:
    p, q = two(4, 3)
    assert torch.equal(symmetric_kl(p, q), symmetric_kl(q, p))
    assert symmetric_kl(p, p) == 0.0


def test_gradients_of_both_sides() -> None:
    p, q = (side.requires_grad_() for side in two(4, 5, 3, dtype=torch.float64))
    assert torch.autograd.gradcheck(symmetric_kl, (p, q))
    assert torch.autograd.gradcheck(symmetric_bernoulli_kl, (p, q))
    assert torch.autograd.gradcheck(squared_error, (p, q))


def test_a_detached_side_is_constant() -> None:
    p, q = (side.requires_grad_() for side in two(4, 3))
    both = torch.autograd.grad(symmetric_kl(p, q), q)[0]
    loss = symmetric_kl(p.detach(), q)
    loss.backward()
    assert p.grad is None
    torch.testing.assert_close(q.grad, both)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [symmetric_kl, symmetric_bernoulli_kl, squared_error])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, loss: Any) -> None:
    p, q = two(64, 100, dtype=dtype)
    actual = loss(p, q)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, loss(p.float(), q.float()))


def test_float64_stays_float64() -> None:
    p, q = two(4, 3, dtype=torch.float64)
    torch.testing.assert_close(symmetric_kl(p, q), divergence(p, q).mean())


@given(shift=st.floats(-1e4, 1e4, width=32))
def test_a_constant_added_to_the_logits_changes_nothing(shift: float) -> None:
    p, q = two(4, 3)
    # Adding it has rounded the logits already: by 2**-11 at 1e4.
    torch.testing.assert_close(symmetric_kl(p + shift, q), symmetric_kl(p, q), rtol=1e-2, atol=1e-3)


@given(distance=st.floats(1e-6, 1e-2), seed=st.integers(0, 99))
def test_near_predictions_have_a_small_distance_that_is_not_negative(distance: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = 10 * torch.randn(8, 50, generator=generator)
    loss = symmetric_kl(p, p + distance * torch.randn(8, 50, generator=generator))
    assert 0 <= loss <= 8 * distance**2 + 1e-9


@pytest.mark.parametrize("size", [100.0, 3e38])
def test_certain_predictions_give_finite_losses_and_gradients(size: float) -> None:
    p = torch.tensor([[size, 0.0, 0.0]], requires_grad=True)
    q = torch.tensor([[0.0, 1.0, 0.0]], requires_grad=True)
    loss = symmetric_kl(p, q)
    loss.backward()
    assert loss.isfinite()
    assert p.grad is not None
    assert p.grad.isfinite().all()


def test_a_class_that_is_impossible_in_both_adds_nothing() -> None:
    p, q = two(4, 3)
    nothing = torch.full((4, 1), -float("inf"))
    first, second = (torch.cat([side, nothing], -1).requires_grad_() for side in (p, q))
    loss = symmetric_kl(first, second)
    loss.backward()
    torch.testing.assert_close(loss, symmetric_kl(p, q))
    for side in (first, second):
        assert side.grad is not None
        assert side.grad.isfinite().all()
        assert not side.grad[:, -1].any()


LABELS = torch.tensor([[1, 2, -100], [-100, -100, 0]])


@pytest.mark.parametrize("labels", [LABELS, LABELS != -100], ids=["labels", "mask"])
def test_only_what_has_a_label_counts(labels: Tensor) -> None:
    p, q = (side.requires_grad_() for side in two(2, 3, 5))
    with torch.no_grad():
        p[0, 2], q[1, 0] = float("nan"), float("inf")
    loss = symmetric_kl(p, q, labels)
    loss.backward()
    rows = LABELS != -100
    torch.testing.assert_close(loss, divergence(p[rows], q[rows]).mean().float())
    for side in (p, q):
        assert side.grad is not None
        assert torch.equal(side.grad.abs().sum(-1) > 0, rows)


def test_no_distribution_at_all_gives_zero() -> None:
    assert symmetric_kl(torch.zeros(0, 3), torch.zeros(0, 3)) == 0


def test_no_label_at_all_gives_zero() -> None:
    p, q = (side.requires_grad_() for side in two(2, 5))
    loss = symmetric_kl(p, q, torch.tensor([-100, -100]))
    loss.backward()
    assert loss == 0.0
    assert p.grad is not None
    assert not p.grad.any()


@pytest.mark.parametrize("num_items", [10, 10.0, torch.tensor(10)], ids=["int", "float", "tensor"])
def test_the_sum_is_divided_by_num_items(num_items: Any) -> None:
    p, q = two(2, 3, 5)
    torch.testing.assert_close(symmetric_kl(p, q, num_items=num_items), symmetric_kl(p, q) * 6 / 10)
    torch.testing.assert_close(symmetric_kl(p, q, LABELS, num_items=num_items), symmetric_kl(p, q, LABELS) * 3 / 10)
    torch.testing.assert_close(squared_error(p, q, num_items=num_items), squared_error(p, q) * 6 / 10)


def test_binary_labels_are_distributions_of_their_own() -> None:
    p, q = two(4, 3)
    torch.testing.assert_close(symmetric_bernoulli_kl(p, q), divergence(p, q, Bernoulli).sum(-1).mean().float())


@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 3)])
def test_regression_takes_the_mean_squared_error(shape: tuple[int, ...]) -> None:
    p, q = two(*shape)
    torch.testing.assert_close(squared_error(p, q), torch.nn.functional.mse_loss(p, q))


@pytest.mark.parametrize(
    ("shape", "problem_type", "expected"),
    [
        ((4, 3), None, symmetric_kl),
        ((4, 3), "single_label_classification", symmetric_kl),
        ((4, 5, 3), None, symmetric_kl),
        ((4, 3), "regression", squared_error),
        ((4, 1), None, squared_error),
        ((4,), None, squared_error),
        ((4, 3), "multi_label_classification", symmetric_bernoulli_kl),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_loss_suits_the_task(shape: tuple[int, ...], problem_type: str | None, expected: Any) -> None:
    p, q = two(*shape)
    assert torch.equal(consistency_loss(p, q, None, problem_type=problem_type), expected(p, q))


def test_labels_choose_distributions_only_where_there_is_one_for_each() -> None:
    p, q = two(2, 3, 5)
    chosen = symmetric_kl(p, q, LABELS)
    assert torch.equal(consistency_loss(p, q, LABELS), chosen)
    assert torch.equal(consistency_loss(p, q, LABELS.flatten()), chosen)
    for labels in (torch.tensor([1, -100]), torch.rand(2, 3), "labels"):
        assert torch.equal(consistency_loss(p, q, labels), symmetric_kl(p, q))


def test_labels_may_belong_to_the_token_before() -> None:
    p, q = two(2, 3, 5)
    rows = torch.tensor([[True, False, False], [False, True, False]])
    torch.testing.assert_close(consistency_loss(p, q, LABELS, labels_are_shifted=True), symmetric_kl(p, q, rows))


@pytest.mark.parametrize(
    "loss", [symmetric_kl, symmetric_bernoulli_kl, squared_error, lambda p, q: consistency_loss(p, q, None)]
)
def test_outputs_of_different_shapes_are_refused(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 2\).*the same"):
        loss(torch.zeros(4, 3), torch.zeros(4, 2))


@pytest.mark.parametrize("labels", [torch.zeros(3, dtype=torch.long), torch.zeros(4)], ids=["shape", "dtype"])
def test_labels_that_do_not_fit_are_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels=torch.* do not fit.*shape \(4,\)"):
        symmetric_kl(torch.zeros(4, 3), torch.zeros(4, 3), labels)
