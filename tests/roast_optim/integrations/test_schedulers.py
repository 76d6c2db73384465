"""Learning-rate schedulers and weight averaging of torch, beside torch.optim.AdamW."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from roast_optim import RoastAdamW

STEPS = 12

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.01, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=10),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=4),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-2, step_size_up=3, cycle_momentum=True),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=STEPS + 1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1.0),
    "SWALR": lambda o: SWALR(o, swa_lr=1e-4, anneal_epochs=4),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def train(model: nn.Module, optimizer: Optimizer, after_step: Callable[[Tensor], object]) -> nn.Module:
    for step in range(STEPS):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after_step(loss.detach())
    return model


def assert_same_parameters(model: nn.Module, expected: nn.Module) -> None:
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_every_scheduler_of_torch_is_tested() -> None:
    known = {
        name
        for name, value in vars(lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert known - set(SCHEDULERS) == {"LRScheduler"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_act_as_on_adamw(name: str) -> None:
    trained = []
    for kind, options in ((AdamW, {"foreach": False}), (RoastAdamW, {"selective": False, "backend": "reference"})):
        model = network()
        optimizer = kind(model.parameters(), lr=1e-2, **options)
        scheduler = SCHEDULERS[name](optimizer)
        if name == "ReduceLROnPlateau":
            step: Callable[[Tensor], object] = scheduler.step
        else:
            step = lambda _, scheduler=scheduler: scheduler.step()  # noqa: E731
        trained.append((train(model, optimizer, step), optimizer))
    (expected, adamw), (model, roast) = trained
    assert roast.param_groups[0]["lr"] == adamw.param_groups[0]["lr"]
    assert_same_parameters(model, expected)


@pytest.mark.parametrize("name", ["LinearLR", "CosineAnnealingLR", "OneCycleLR"])
def test_a_scheduler_of_a_tensor_learning_rate_trains_as_of_a_float(name: str, backend: str) -> None:
    trained = []
    for lr in (1e-2, torch.tensor(1e-2, dtype=torch.float64)):
        model = network()
        optimizer = RoastAdamW(model.parameters(), lr=lr, alpha=0.5, beta=5.0, refresh_every=3, backend=backend)
        scheduler = SCHEDULERS[name](optimizer)
        trained.append(train(model, optimizer, lambda _, scheduler=scheduler: scheduler.step()))
    for parameter, expected in zip(trained[1].parameters(), trained[0].parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["SWA", "EMA"])
def test_averages_of_the_weights_change_nothing_in_training(average: Any) -> None:
    def optimizer_of(model: nn.Module) -> RoastAdamW:
        return RoastAdamW(model.parameters(), lr=1e-2, alpha=0.5, beta=5.0, refresh_every=3, backend="reference")

    plain = network()
    train(plain, optimizer_of(plain), lambda _: None)
    model = network()
    averaged = AveragedModel(model, multi_avg_fn=average)
    seen = []

    def update(_: Tensor) -> None:
        averaged.update_parameters(model)
        seen.append(copy.deepcopy(model.state_dict()))

    train(model, optimizer_of(model), update)
    update_bn([torch.ones(8, 4)], averaged)
    assert_same_parameters(model, plain)
    if average is None:
        for name, parameter in averaged.module.named_parameters():
            torch.testing.assert_close(parameter, torch.stack([state[name] for state in seen]).mean(0))
