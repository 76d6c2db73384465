"""step(gradient_factor=...): gradients are clipped and unscaled where they are read."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Replicate
from torch.testing._internal.distributed.fake_pg import FakeStore

from roast_optim import RoastAdamW
from tests.support.snapshot import assert_same_bits, assert_same_snapshots, snapshot

STEPS = 7
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def an_optimizer(backend: str, dtype: torch.dtype = torch.float32, **options: Any) -> RoastAdamW:
    """Over two parameters; masks begin after the third step."""
    generator = torch.Generator().manual_seed(1)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((40, 30), (7,))]
    usual = {"lr": 1e-2, "alpha": 0.5, "selective": True, "refresh_every": 3, "backend": backend}
    return RoastAdamW(params, **{**usual, **options})


def parameters(optimizer: RoastAdamW) -> list[Tensor]:
    params: list[Tensor] = optimizer.param_groups[0]["params"]
    return params


def set_gradients(optimizer: RoastAdamW, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in parameters(optimizer):
        param.grad = (scale * torch.randn(param.shape, generator=generator)).to(param.dtype)


def clip_factor(optimizer: RoastAdamW, max_norm: float) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_ has it."""
    norm = torch.nn.utils.get_total_norm([param.grad for param in parameters(optimizer) if param.grad is not None])
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


@pytest.mark.parametrize("max_norm", [1.0, 1e3], ids=["clipped", "below the norm"])
def test_the_recipe_is_clip_grad_norm_bit_for_bit(max_norm: float, backend: str) -> None:
    optimizer = an_optimizer(backend)
    expected = copy.deepcopy(optimizer)
    for step in range(STEPS):
        set_gradients(optimizer, step)
        before = [param.grad.clone() for param in parameters(optimizer) if param.grad is not None]
        optimizer.step(gradient_factor=clip_factor(optimizer, max_norm))
        for param, grad in zip(parameters(optimizer), before, strict=True):
            assert param.grad is not None
            assert_same_bits(param.grad, grad)
    for step in range(STEPS):
        set_gradients(expected, step)
        torch.nn.utils.clip_grad_norm_(parameters(expected), max_norm, foreach=False)
        expected.step()
    assert optimizer.has_masked
    assert_same_snapshots(snapshot(optimizer), snapshot(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [0.3, 2, torch.tensor(0.3), torch.tensor([2.0], dtype=torch.float64)], ids=repr)
def test_importance_that_is_measured_is_multiplied_too(
    factor: float | Tensor, dtype: torch.dtype, backend: str
) -> None:
    optimizer = an_optimizer(backend, dtype)
    expected = copy.deepcopy(optimizer)
    working = torch.promote_types(dtype, torch.float32)
    for step in range(2):
        for each in (optimizer, expected):
            set_gradients(each, step)
        for param in parameters(expected):
            assert param.grad is not None
            param.grad = (param.grad.to(working) * torch.as_tensor(factor, dtype=working)).to(dtype)
        with optimizer.measure_importance():
            optimizer.step(gradient_factor=factor)
        with expected.measure_importance():
            expected.step()
    assert all(state["importance"].any() for state in optimizer.state.values())
    assert_same_snapshots(snapshot(optimizer), snapshot(expected))


def test_a_factor_holds_for_one_step_and_a_tensor_is_read_when_the_step_is_taken(backend: str) -> None:
    optimizer, factor = an_optimizer(backend, lr=1.0, betas=(0.0, 0.999)), torch.tensor(1.0)

    def closure() -> float:
        set_gradients(optimizer, 0)
        factor.fill_(0.5)
        return 3.0

    assert optimizer.step(closure, gradient_factor=factor) == 3.0
    param = parameters(optimizer)[0]
    assert param.grad is not None
    assert_same_bits(optimizer.state[param]["exp_avg"], param.grad * 0.5)
    optimizer.step()
    assert_same_bits(optimizer.state[param]["exp_avg"], param.grad)


def test_a_gradscaler_hands_it_on_and_a_step_that_it_skips_changes_nothing(backend: str) -> None:
    """Unscaled by the GradScaler, which looks for overflows; clipped by the step."""
    optimizer, scaler = an_optimizer(backend), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    expected = copy.deepcopy(optimizer)
    for step in range(STEPS):
        set_gradients(optimizer, step, scale=math.inf if step == 2 else 2.0**10 * 0.5 ** (step > 2))
        before = snapshot(optimizer)
        scaler.scale(torch.ones(()))  # makes the scale, as scaler.scale(loss) does
        scaler.unscale_(optimizer)
        scaler.step(optimizer, gradient_factor=clip_factor(optimizer, 1.0))
        scaler.update()
        if step == 2:
            assert_same_snapshots(snapshot(optimizer), before)
    for step in (step for step in range(STEPS) if step != 2):
        set_gradients(expected, step)
        torch.nn.utils.clip_grad_norm_(parameters(expected), 1.0, foreach=False)
        expected.step()
    assert scaler.get_scale() == 2.0**9
    assert_same_snapshots(snapshot(optimizer), snapshot(expected))


def test_torch_is_not_told_that_the_step_unscales(backend: str) -> None:
    """Lightning refuses to clip gradients of an optimizer that says so, and a step that is skipped must not begin."""
    assert not hasattr(an_optimizer(backend), "_step_supports_amp_scaling")


@pytest.fixture
def mesh() -> Iterator[dist.DeviceMesh]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_factor_may_be_a_dtensor_as_norms_of_sharded_gradients_are(mesh: dist.DeviceMesh, backend: str) -> None:
    optimizer = an_optimizer(backend)
    expected = copy.deepcopy(optimizer)
    for each in (optimizer, expected):
        set_gradients(each, 0)
    optimizer.step(gradient_factor=DTensor.from_local(torch.tensor(0.25), mesh, [Replicate()]))
    expected.step(gradient_factor=0.25)
    assert_same_snapshots(snapshot(optimizer), snapshot(expected))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (True, "True"),
        (None, "None"),
        ("0.5", "'0.5'"),
        (torch.ones(2), "a tensor of 2 elements of torch.float32"),
        (torch.ones((), dtype=torch.complex64), "a tensor of 1 elements of torch.complex64"),
    ],
    ids=repr,
)
def test_what_is_no_factor_is_refused_before_anything_changes(value: Any, shown: str, backend: str) -> None:
    optimizer = an_optimizer(backend)
    set_gradients(optimizer, 0)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=f"invalid gradient_factor={shown}; it must be a finite number or a tensor of"):
        optimizer.step(gradient_factor=value)
    assert_same_snapshots(snapshot(optimizer), before)
