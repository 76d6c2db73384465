"""What RoastAdamW says to other processes: nothing in a step, 512 KB in a refresh, an error instead of a hang."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from roast_optim import RoastAdamW
from tests.distributed.processes import Failure, outcomes_in_processes, run_in_processes
from tests.distributed.training import EVEN, OPTIONS, REFRESH_EVERY, WAYS_TO_SHARD, batch, network, train

pytestmark = pytest.mark.distributed

HISTOGRAM = 65536 * 8  # bytes
CHECK = 2 * 8


class SentBytes(TorchDispatchMode):
    """The name and the bytes of every collective."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = [value for value in torch.utils._pytree.tree_leaves(args) if isinstance(value, torch.Tensor)]
            self.collectives.append((func._opname, sum(tensor.nbytes for tensor in tensors)))
        return func(*args, **kwargs or {})


def _sent(way: str, hidden: int, options: dict[str, Any]) -> list[list[tuple[str, int]]]:
    model = network(hidden)
    WAYS_TO_SHARD[way][0](model)
    optimizer = RoastAdamW(model.parameters(), backend="reference", **{**OPTIONS, **options})
    sent = []
    for step in range(2 * REFRESH_EVERY):
        model(batch(step)).square().mean().backward()
        with SentBytes() as mode:
            optimizer.step()
        optimizer.zero_grad()
        sent.append(mode.collectives)
    return sent


@pytest.mark.parametrize("hidden", [EVEN, 100 * EVEN])
@pytest.mark.parametrize(("way", "shards"), [("fsdp2", 1), ("hsdp", 1), ("fsdp2 and tensor parallel", 2)])
def test_a_step_sends_nothing_and_a_refresh_a_histogram_per_sharding(way: str, shards: int, hidden: int) -> None:
    meshes = {"fsdp2": 1, "hsdp": 2, "fsdp2 and tensor parallel": 3}[way]
    for sent in run_in_processes(4, _sent, way, hidden, {}):
        assert [bytes_sent for _, bytes_sent in sent[0]] == [CHECK] * meshes  # options are compared at the first step
        for step in (1, 2, 4, 5, 6):
            assert sent[step] == []
        for step in (3, 7):
            histograms = [entry for entry in sent[step] if entry[1] == HISTOGRAM]
            others = [entry for entry in sent[step] if entry[1] != HISTOGRAM]
            assert others == [("allreduce_", CHECK)] * meshes
            assert 1 <= len(histograms) <= 1 + 2 * (shards - 1)


def _sent_by_replicas() -> list[list[tuple[str, int]]]:
    model = network()
    optimizer = RoastAdamW(model.parameters(), backend="reference", **OPTIONS)
    with SentBytes() as mode:
        train(model, optimizer)
    return mode.collectives


def test_replicas_send_nothing_at_all() -> None:
    assert run_in_processes(2, _sent_by_replicas) == [[], []]


# ------------------------------------------------------------------------------------------------------------ bad input


def _different(option: str, values: list[Any], steps: int) -> None:
    model = network()
    fully_shard(model)
    optimizer = RoastAdamW(model.parameters(), backend="reference", **{**OPTIONS, option: values[dist.get_rank()]})
    train(model, optimizer, last=steps)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("seed", [7, 8]),
        ("refresh_every", [4, 5]),
        ("alpha", [0.6, 0.7]),
        ("selective", [True, False]),
        ("rescale", [True, False]),
        ("mask_schedule", ["step", "refresh"]),
    ],
)
def test_options_that_differ_between_processes_raise_in_every_process(option: str, values: list[Any]) -> None:
    for result in outcomes_in_processes(2, _different, option, values, 1):
        assert isinstance(result, Failure)
        assert "RoastAdamW differs between processes" in result


def _stages(seeds: list[int]) -> None:
    rank = dist.get_rank()
    model = network()
    stage = (model.first, model.second)[rank]
    optimizer = RoastAdamW(
        stage.parameters(), backend="reference", process_group=dist.group.WORLD, **{**OPTIONS, "seed": seeds[rank]}
    )
    train(model, optimizer)


def test_pipeline_stages_with_different_seeds_raise_in_every_process() -> None:
    for result in outcomes_in_processes(2, _stages, [7, 8]):
        assert isinstance(result, Failure)
        assert "RoastAdamW differs between processes" in result


def _in_a_group_of_process_zero() -> str:
    group: Any = dist.new_group([0])
    try:
        RoastAdamW(network().parameters(), backend="reference", process_group=group)
    except ValueError as error:
        return str(error)
    return ""


def test_a_process_group_without_this_process_is_refused() -> None:
    member, other = run_in_processes(2, _in_a_group_of_process_zero)
    assert member == ""
    assert "process 1 is a member" in other


def _after_the_group_is_gone() -> str:
    group = dist.new_group([0])
    dist.destroy_process_group()
    try:
        RoastAdamW(network().parameters(), backend="reference", process_group=group)
    except ValueError as error:
        return str(error)
    finally:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return ""


def test_a_process_group_of_uninitialised_processes_is_refused() -> None:
    (message,) = run_in_processes(1, _after_the_group_is_gone)
    assert "torch.distributed is not initialised" in message
