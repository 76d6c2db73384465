"""RoastAdamW on the Triton backend, from end to end, beside the reference backend on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from roast_optim.optimizer import RoastAdamW
from tests.support.devices import CPU, DEVICE, placed

SHAPES = [(40, 30), (30,), (), (0,), (7, 5, 3)]


def make(backend: str, **options: Any) -> RoastAdamW:
    """Triton's parameters lie on the device of the tests, the reference's on the CPU."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES]
    parameters = [nn.Parameter(value if backend == "reference" else placed(value)) for value in values]
    groups = [{"params": parameters[:3]}, {"params": parameters[3:], "alpha": 0.2, "weight_decay": 0.0}]
    return RoastAdamW(groups, lr=1e-2, alpha=0.5, beta=5.0, refresh_every=3, backend=backend, **options)


def parameters_of(optimizer: RoastAdamW) -> list[nn.Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def take_steps(optimizer: RoastAdamW, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for param in parameters_of(optimizer):
            sizes = 10 ** torch.randn(param.shape, generator=generator)
            param.grad = (torch.randn(param.shape, generator=generator) * sizes).to(param.device)
        optimizer.step()


@pytest.mark.parametrize(
    "options",
    [{}, {"amsgrad": True, "maximize": True}, {"capturable": True}, {"mask_schedule": "refresh"}, {"rescale": False}],
    ids=str,
)
def test_ranks_are_the_references_and_parameters_agree(options: dict[str, Any]) -> None:
    actual, expected = make("triton", **options), make("reference", **{**options, "capturable": False})
    take_steps(actual, 0, 8)
    take_steps(expected, 0, 8)
    for param, wanted in zip(parameters_of(actual), parameters_of(expected), strict=True):
        assert param.device == DEVICE
        assert wanted.device == CPU
        torch.testing.assert_close(param.cpu(), wanted, rtol=1e-6, atol=1e-6)
        for name in ("rank_code", "importance", "step"):
            assert torch.equal(actual.state[param][name].cpu(), expected.state[wanted][name])
    assert actual.selection_stats() == expected.selection_stats()
    assert actual.selection_stats()["refreshes"] == 2


def test_going_on_after_loading_a_checkpoint_equals_never_having_stopped() -> None:
    whole, before, after = make("triton"), make("triton"), make("triton")
    take_steps(whole, 0, 7)
    take_steps(before, 0, 4)
    with torch.no_grad():
        for param, loaded in zip(parameters_of(before), parameters_of(after), strict=True):
            loaded.copy_(param)
    after.load_state_dict(before.state_dict())
    take_steps(after, 4, 7)
    for param, loaded in zip(parameters_of(whole), parameters_of(after), strict=True):
        assert torch.equal(param, loaded)


def test_importance_can_be_measured_without_a_step() -> None:
    optimizer = make("triton")
    before = [param.detach().clone() for param in parameters_of(optimizer)]
    with optimizer.measure_importance():
        take_steps(optimizer, 0, 1)
    for param, unchanged in zip(parameters_of(optimizer), before, strict=True):
        assert torch.equal(param, unchanged)
        assert param.grad is not None
        assert torch.equal(optimizer.state[param]["importance"], param.grad.square())
