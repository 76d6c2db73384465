"""What step does with gradients: it never writes to them, masks non-finite and saturates large ones, refuses some."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from roast_optim import RoastAdamW
from tests.oracles import philox
from tests.support.optimizer_and_oracle import OptimizerAndOracle
from tests.support.snapshot import assert_same_bits, assert_same_snapshots, snapshot


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("maximize", [False, True])
def test_gradients_are_never_written_to(dtype: torch.dtype, maximize: bool, backend: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(40, 5, dtype=dtype))
    optimizer = RoastAdamW([parameter], maximize=maximize, refresh_every=2, backend=backend)
    gradient = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradient[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    before, version = gradient.clone(), gradient._version
    parameter.grad = gradient
    for _ in range(5):
        optimizer.step()
    with optimizer.measure_importance():
        optimizer.step()
    assert parameter.grad is gradient
    assert gradient._version == version
    assert_same_bits(gradient, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rescale", [True, False])
def test_non_finite_gradients_pass_where_kept_and_are_zero_elsewhere(
    dtype: torch.dtype, rescale: bool, backend: str
) -> None:
    pair = OptimizerAndOracle(
        [[(30, 40)]], backend=backend, dtype=dtype, alpha=0.5, beta=3.0, amsgrad=True, rescale=rescale
    )
    pair.step()
    pair.refresh()
    pair.assert_same_selection()
    gradients = pair.gradients()
    gradient = gradients[0][0]
    assert gradient is not None
    gradient[::3], gradient[1, 1::2], gradient[4, ::2] = np.nan, np.inf, -np.inf
    pair.step(gradients)
    kept = pair.oracle.kept[0][0]
    assert kept is not None
    state, expected = pair.states()[0]
    assert expected is not None
    assert state["exp_avg"][torch.from_numpy(~kept)].isfinite().all()
    assert state["exp_avg"].isnan().any()
    assert state["exp_avg"].isinf().any()
    for key, moment in (
        ("exp_avg", expected.exp_avg),
        ("exp_avg_sq", expected.exp_avg_sq),
        ("max_exp_avg_sq", expected.max_exp_avg_sq),
    ):
        np.testing.assert_allclose(state[key].double().numpy(), moment, rtol=1e-5)
    pair.assert_close()
    pair.assert_same_selection()  # importance included: nothing non-finite entered it


def test_an_element_that_is_not_kept_gets_a_gradient_of_exactly_zero(backend: str) -> None:
    pair = OptimizerAndOracle([[(30, 40)]], backend=backend, betas=(0.0, 0.0), alpha=0.5, beta=3.0)
    pair.step()
    pair.refresh()
    pair.step([[np.full((30, 40), np.nan)]])
    kept = pair.oracle.kept[0][0]
    assert kept is not None
    state, _ = pair.states()[0]
    for moment in ("exp_avg", "exp_avg_sq"):
        assert (state[moment][torch.from_numpy(~kept)] == 0).all()
        assert state[moment][torch.from_numpy(kept)].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_finite_rescaled_gradient_saturates_at_the_range_of_its_dtype(dtype: torch.dtype, backend: str) -> None:
    largest = torch.finfo(dtype).max
    parameter = torch.nn.Parameter(torch.zeros(4000, dtype=dtype))
    optimizer = RoastAdamW([parameter], lr=1e-3, betas=(0.0, 0.5), alpha=0.5, beta=2.0, backend=backend)
    parameter.grad = torch.linspace(0.5, 1.5, 4000).to(dtype)
    optimizer.step()
    optimizer.refresh()
    sign = torch.tensor([1.0, -1.0]).to(dtype).repeat(2000)
    parameter.grad = sign * (largest / 1.5)
    optimizer.step()
    codes = optimizer.state[parameter]["rank_code"].numpy()
    kept = philox.keep_mask(codes, 0.5, 2.0, seed=0, parameter_id=0, draw_number=2)
    factors = philox.rescaling_factors(0.5, 2.0)[codes].astype(np.float64)
    with np.errstate(over="ignore"):
        expected = np.clip(float(torch.tensor(largest / 1.5, dtype=dtype)) * factors, -largest, largest)
    expected = np.where(kept, expected * sign.double().numpy(), 0)
    first_moment = optimizer.state[parameter]["exp_avg"]
    assert first_moment.isfinite().all()
    assert (first_moment.abs() == largest).any()
    np.testing.assert_allclose(first_moment.double().numpy(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gradients_are_masked_and_rescaled(dtype: torch.dtype, backend: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(50, 60, dtype=dtype))
    optimizer = RoastAdamW([parameter], betas=(0.0, 0.9), alpha=0.6, beta=2.0, refresh_every=1, seed=3, backend=backend)
    for step in range(1, 4):
        codes = optimizer.state[parameter]["rank_code"].numpy().copy() if step > 1 else None
        gradient = torch.randn(50, 60, generator=torch.Generator().manual_seed(step)).to(dtype)
        parameter.grad = gradient
        optimizer.step()
        if codes is None:
            continue
        kept = philox.keep_mask(codes, 0.6, 2.0, seed=3, parameter_id=0, draw_number=step)
        expected = gradient.double().numpy() * philox.rescaling_factors(0.6, 2.0)[codes] * kept
        first_moment = optimizer.state[parameter]["exp_avg"]
        assert first_moment.dtype == dtype
        np.testing.assert_allclose(first_moment.double().numpy(), expected, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_sparse_gradients_raise_a_clear_error_and_change_nothing(backend: str) -> None:
    dense = torch.nn.Parameter(torch.ones(3))
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = RoastAdamW([dense, *embedding.parameters()], backend=backend)
    (embedding(torch.tensor([1, 2])) * dense).sum().backward()
    before = embedding.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"sparse.*sparse=False"):
        optimizer.step()
    assert torch.equal(before, embedding.weight)
    assert dense.tolist() == [1.0] * 3
    assert optimizer.param_groups[0]["steps_since_refresh"] == 0


def test_complex_gradients_raise_a_clear_error(backend: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises((RuntimeError, ValueError, TypeError), match=r"complex.*view_as_real"):  # noqa: PT012
        optimizer = RoastAdamW([parameter], backend=backend)
        (parameter * parameter.conj()).real.sum().backward()
        optimizer.step()
    assert parameter.tolist() == [1.0] * 3


# ------------------------------------------------------------------------------------------------------- loss scaling


def test_a_step_skipped_by_the_gradient_scaler_changes_nothing(backend: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(30))
    optimizer = RoastAdamW([parameter], refresh_every=2, alpha=0.5, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def train(factor: torch.Tensor) -> None:
        optimizer.zero_grad()
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    for step in range(3):
        train(torch.arange(1.0, 31.0) + step)
    before = snapshot(optimizer)
    train(torch.full((30,), float("inf")))
    assert_same_snapshots(before, snapshot(optimizer))
    assert scaler.get_scale() == 2.0
    train(torch.arange(1.0, 31.0))
    assert optimizer.param_groups[0]["refreshes"] == 2


def test_loss_scaling_does_not_change_importance(backend: str) -> None:
    """The gradient is the one after unscaling."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = RoastAdamW([parameter], backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale((parameter * torch.tensor([1.0, 2.0, 3.0])).sum()).backward()
    scaler.step(optimizer)
    assert optimizer.state[parameter]["importance"].tolist() == [1.0, 4.0, 9.0]


# ------------------------------------------------------------------------------------------------------ torch's habits


def test_a_closure_is_called_once_with_gradients_enabled(backend: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = RoastAdamW([parameter], backend=backend)
    calls = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = (2 * parameter).sum()
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss.item()

    with torch.no_grad():
        assert optimizer.step(closure) == 6.0
    assert calls == [True]
    assert (parameter != 1).all()
    assert optimizer.step() is None


def test_hooks_and_schedulers_of_torch_work(backend: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = RoastAdamW([parameter], lr=1.0, weight_decay=0.0, backend=backend)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        scheduler.step()
    assert calls == ["before", "after"]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
