"""The fused symmetric KL divergence and its gradients against the definition in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from roast_optim.kernels.triton import symmetric_kl
from tests.support.devices import differentiably_placed, placed


def symmetric_kl_rows(logits_p: Tensor, logits_q: Tensor, counted: Tensor | None = None) -> Tensor:
    """The kernel's, on the device of the tests; gradients come back to the CPU."""
    counted = None if counted is None else placed(counted)
    return symmetric_kl.symmetric_kl_rows(
        differentiably_placed(logits_p), differentiably_placed(logits_q), counted
    ).cpu()


def defined(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(p||q) + KL(q||p) per row, of float64 logits."""
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q) + log_q.exp() * (log_q - log_p)).sum(-1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_agrees(logits_p: Tensor, logits_q: Tensor, rtol: float = 1e-5) -> None:
    """Values and both gradients, under random weights of the rows."""
    weights = random(*logits_p.shape[:-1], seed=9).abs() + 0.5
    p, q = (logits.detach().requires_grad_() for logits in (logits_p, logits_q))
    exact_p, exact_q = (logits.detach().double().requires_grad_() for logits in (logits_p, logits_q))
    actual, exact = symmetric_kl_rows(p, q), defined(exact_p, exact_q)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), exact, rtol=rtol, atol=1e-9)
    actual.backward(weights)
    exact.backward(weights.double())
    for side, exact_side in ((p, exact_p), (q, exact_q)):
        largest = float(exact_side.grad.abs().max())
        rounding = torch.finfo(side.dtype).eps if side.dtype != torch.float32 else 0.0
        assert side.grad.dtype == side.dtype
        torch.testing.assert_close(side.grad.double(), exact_side.grad, rtol=rounding, atol=rtol * largest + 1e-12)


@pytest.mark.parametrize("classes", [1, 2, 3, 31, 1000, 2048, 2049, 5003])
def test_few_and_many_classes(classes: int) -> None:
    p = 3 * random(5, classes)
    assert_agrees(p, p + 0.3 * random(5, classes, seed=1))


def test_a_row_longer_than_a_program_of_the_backward_pass() -> None:
    p = 3 * random(2, 20_000)
    assert_agrees(p, p + random(2, 20_000, seed=1))


@pytest.mark.parametrize("shape", [(7,), (2, 3, 7), (0, 7)], ids=str)
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    rows = symmetric_kl_rows(random(*shape), random(*shape, seed=1))
    exact = defined(random(*shape).double(), random(*shape, seed=1).double())
    torch.testing.assert_close(rows.double(), exact, rtol=1e-5, atol=0.0)


def test_logits_far_from_zero_and_far_apart() -> None:
    p = random(3, 50)
    assert_agrees(p + 300, p + 0.1 * random(3, 50, seed=1) - 300, rtol=1e-3)  # half a unit of 300 is 2e-5
    assert_agrees(60 * p, -40 * p, rtol=1e-4)  # of 100, 4e-6, by which the logarithms of the probabilities are off


def test_the_largest_logits_do_not_overflow() -> None:
    assert_agrees(torch.tensor([[3e38, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]))


def test_nearly_certain_predictions_keep_their_digits() -> None:
    p = random(4, 6000)
    p[:, 4321] += 20
    q = p + 0.1 * random(4, 6000, seed=1)
    torch.testing.assert_close(symmetric_kl_rows(p, q).double(), defined(p.double(), q.double()), rtol=1e-5, atol=0.0)


def test_small_divergences_keep_their_digits() -> None:
    p = random(4, 100)
    assert_agrees(p, p + 1e-3 * random(4, 100, seed=1), rtol=1e-3)
    same = symmetric_kl_rows(p, p.clone())
    assert torch.equal(same, torch.zeros(4))


def test_large_vocabularies_in_blocks_with_the_maximum_anywhere() -> None:
    p = random(3, 6000)
    q = p + random(3, 6000, seed=1)
    for row, position in enumerate((0, 3000, 5999)):
        p[row, position] = 40.0
        q[row, 5999 - position] = 40.0
    assert_agrees(p, q)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_logits(dtype: torch.dtype) -> None:
    p = random(3, 100).to(dtype)
    assert_agrees(p, (p + 0.5 * random(3, 100, seed=1)).to(dtype))


def test_an_impossible_class_adds_nothing() -> None:
    p, q = random(2, 10), random(2, 10, seed=1)
    p[:, 4], q[:, 4] = -math.inf, -math.inf
    p.requires_grad_()
    rows = symmetric_kl_rows(p, q)
    keep = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    exact = defined(p.detach()[:, keep].double(), q[:, keep].double())
    torch.testing.assert_close(rows.detach().double(), exact, rtol=1e-5, atol=0.0)
    rows.sum().backward()
    assert p.grad is not None
    assert p.grad.isfinite().all()
    assert not p.grad[:, 4].any()
    q[0, 5] = -math.inf
    assert symmetric_kl_rows(p.detach(), q)[0] == math.inf


def test_rows_that_do_not_count_give_zero_whatever_they_hold() -> None:
    p, q = random(3, 10), random(3, 10, seed=1)
    p[1] = math.nan
    p, q = p.requires_grad_(), q.requires_grad_()
    rows = symmetric_kl_rows(p, q, torch.tensor([True, False, True]))
    assert rows[1] == 0
    assert (rows[::2] > 0).all()
    rows.sum().backward()
    assert p.grad is not None
    assert q.grad is not None
    assert not p.grad[1].any()
    assert not q.grad[1].any()
    assert p.grad[0].all()


@pytest.mark.parametrize("side", [0, 1])
def test_a_constant_side_gets_no_gradient(side: int) -> None:
    logits = [random(2, 9), random(2, 9, seed=1)]
    exact = [tensor.double() for tensor in logits]
    logits[side].requires_grad_()
    exact[side].requires_grad_()
    symmetric_kl_rows(*logits).sum().backward()
    defined(*exact).sum().backward()
    assert logits[1 - side].grad is None
    torch.testing.assert_close(logits[side].grad.double(), exact[side].grad, rtol=1e-5, atol=1e-7)


def test_strided_logits() -> None:
    p, q = random(4, 30)[::2, 3:20], random(17, 2, seed=1).T
    torch.testing.assert_close(symmetric_kl_rows(p, q).double(), defined(p.double(), q.double()), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits_q": torch.zeros(2, 4)}, "both must be"),
        ({"logits_p": torch.zeros(2, 0), "logits_q": torch.zeros(2, 0)}, "classes >= 1"),
        ({"logits_p": torch.zeros(2, 3).double()}, "logits are torch.float64"),
        ({"counted": torch.ones(3, dtype=torch.bool)}, "must be bool of shape"),
        ({"counted": torch.ones(2)}, "must be bool of shape"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        symmetric_kl_rows(**{"logits_p": torch.zeros(2, 3), "logits_q": torch.zeros(2, 3), **changes})
