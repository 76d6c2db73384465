"""torch's ZeroRedundancyOptimizer, which gives every process the optimizer of a part of the parameters."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from roast_optim import RoastAdamW
from tests.distributed.processes import run_in_processes

pytestmark = pytest.mark.distributed

STEPS, LATER_STEPS = 6, 3
OPTIONS: dict[str, Any] = {"lr": 1e-2, "alpha": 0.5, "beta": 5.0, "refresh_every": 2, "backend": "reference"}
SIZES = {"blocks": [(7, 5), (11,), (3, 4)], "head": [(4, 6), (2,)]}


def _groups() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "params": [nn.Parameter(torch.randn(size, generator=generator)) for size in sizes],
            "selective": name == "blocks",
        }
        for name, sizes in SIZES.items()
    ]


def _set_gradients(groups: list[dict[str, Any]], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def _values(groups: list[dict[str, Any]]) -> list[Tensor]:
    return [parameter.detach().clone() for group in groups for parameter in group["params"]]


def _partitioned() -> dict[str, Any]:
    """Train; train on from the collected state; which parameters each process has, group by group."""

    def optimizer_of(groups: list[dict[str, Any]]) -> ZeroRedundancyOptimizer:
        made = functools.partial(RoastAdamW, process_group=dist.group.WORLD, **OPTIONS)
        return ZeroRedundancyOptimizer(groups, optimizer_class=made)  # type: ignore[arg-type]

    groups = _groups()
    optimizer = optimizer_of([dict(group) for group in groups])
    for step in range(STEPS):
        _set_gradients(groups, step)
        optimizer.step()
    trained = _values(groups)

    optimizer.consolidate_state_dict(to=0)
    # A copy, as a file would be: ZeroRedundancyOptimizer loads tensors of the same device without copying them.
    collected = [copy.deepcopy(optimizer.state_dict()) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(collected, src=0)
    resumed = _groups()
    for group, values in zip(resumed, groups, strict=True):
        for parameter, value in zip(group["params"], values["params"], strict=True):
            parameter.data.copy_(value.detach())
    after = optimizer_of([dict(group) for group in resumed])
    after.load_state_dict(collected[0])
    for step in range(STEPS, STEPS + LATER_STEPS):
        for each, its_optimizer in ((groups, optimizer), (resumed, after)):
            _set_gradients(each, step)
            its_optimizer.step()

    names = {id(p): (i, j) for i, group in enumerate(groups) for j, p in enumerate(group["params"])}
    parts = [[[names[id(p)] for p in group["params"]] for group in part] for part in optimizer._partition_parameters()]
    return {"trained": trained, "went on": _values(groups), "resumed": _values(resumed), "parts": parts}


def _alone(parts: list[list[list[tuple[int, int]]]], steps: int) -> list[Tensor]:
    """One optimizer, with the parameters in the order of the processes that have them."""
    groups = _groups()
    ordered = [
        {"params": [groups[i]["params"][j] for i, j in members], "selective": group["selective"]}
        for part in parts
        for members, group in zip(part, groups, strict=True)
        if members
    ]
    optimizer = RoastAdamW(ordered, **OPTIONS)
    for step in range(steps):
        _set_gradients(groups, step)
        optimizer.step()
    return _values(groups)


@pytest.fixture(scope="module")
def two_processes() -> list[dict[str, Any]]:
    return run_in_processes(2, _partitioned)


def test_parts_of_processes_give_the_bits_of_one_optimizer(two_processes: list[dict[str, Any]]) -> None:
    parts = two_processes[0]["parts"]
    assert all(any(part) for part in parts), "each process has parameters"
    expected = _alone(parts, STEPS)
    for process, result in enumerate(two_processes):
        for number, (value, wanted) in enumerate(zip(result["trained"], expected, strict=True)):
            assert torch.equal(value, wanted), f"process {process}, parameter {number}"


def test_the_collected_state_goes_on_with_the_same_bits(two_processes: list[dict[str, Any]]) -> None:
    expected = _alone(two_processes[0]["parts"], STEPS + LATER_STEPS)
    for process, result in enumerate(two_processes):
        for name in ("went on", "resumed"):
            for number, (value, wanted) in enumerate(zip(result[name], expected, strict=True)):
                assert torch.equal(value, wanted), f"{name}, process {process}, parameter {number}"


def _without_a_group() -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ZeroRedundancyOptimizer(_groups(), optimizer_class=RoastAdamW, lr=1e-2)
    return [str(warning.message) for warning in caught]


def test_parts_that_know_nothing_of_each_other_are_said() -> None:
    for messages in run_in_processes(2, _without_a_group):
        assert any("ZeroRedundancyOptimizer" in message and "process_group" in message for message in messages)
