"""Ranks, masks and parameters do not depend on how many processes there are or how parameters are sharded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from roast_optim import RoastAdamW
from tests.distributed.processes import run_in_processes
from tests.distributed.training import (
    OPTIONS,
    REFRESH_EVERY,
    STEPS,
    WAYS_TO_SHARD,
    assert_same_outcome,
    batch,
    network,
    outcome,
    replicated,
    sharded,
    sharded_with_given_gradients,
    share_of_differing_codes,
    single,
    train,
    whole,
)

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("world_size", [2, 4])
def test_ddp_ranks_hold_equal_parameters_after_fifty_steps_without_a_broadcast(world_size: int, backend: str) -> None:
    results = run_in_processes(world_size, replicated, 50, True, backend)
    for result in results:
        assert result["refreshes"] == 12
        for kind in ("params", "codes", "masks"):
            assert all(torch.equal(tensor, results[0][kind][name]) for name, tensor in result[kind].items())


@pytest.mark.parametrize(
    ("world_size", "way"),
    [(2, "fsdp2"), (3, "fsdp2"), (4, "fsdp2"), (4, "hsdp"), (2, "tensor parallel"), (4, "fsdp2 and tensor parallel")],
)
def test_sharded_parameters_and_the_same_batch_everywhere_equal_one_process(
    world_size: int, way: str, backend: str
) -> None:
    expected = single(backend, hidden=WAYS_TO_SHARD[way][1])
    for result in run_in_processes(world_size, sharded, way, False, backend):
        assert_same_outcome(result, expected)


@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_along_the_second_dimension_equal_one_process(world_size: int, backend: str) -> None:
    for result in run_in_processes(world_size, sharded_with_given_gradients, backend):
        assert_same_outcome(result, single(backend))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("run", [sharded, replicated])
def test_a_batch_split_over_processes_has_the_same_masks_wherever_codes_are_equal(
    world_size: int, run: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    arguments = ("fsdp2", True) if run is sharded else (STEPS, True)
    for result in run_in_processes(world_size, run, *arguments):
        share = share_of_differing_codes(result, single())
        record_property("share of differing codes", share)
        print(f"{run.__name__} over {world_size} processes: {share:.2%} of the rank codes differ")
        assert share < 0.1


class Tokens(nn.Module):
    """An embedding table, a normalisation and a head, whose gradients tensor parallelism leaves in three ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm, self.head = nn.Embedding(8, 6), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[batch, tokens]`` to ``[batch, tokens, 4]``."""
        output: Tensor = self.head(self.norm(self.table(tokens)))
        return output


def _train_tokens(parallel: bool, backend: str) -> dict[str, Any]:
    model = Tokens()
    if parallel:
        plan = {
            "table": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
            "norm": SequenceParallel(),
            "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        }
        parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), plan)
    optimizer = RoastAdamW(model.parameters(), backend=backend, **OPTIONS)
    for step in range(STEPS):
        tokens = torch.randint(8, (3, 4), generator=torch.Generator().manual_seed(step))
        model(tokens).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return outcome(model, optimizer)


def test_gradients_that_are_spread_in_another_way_than_their_parameters_equal_one_process(backend: str) -> None:
    results = run_in_processes(2, _train_tokens, True, backend)
    for result in results:
        assert_same_outcome(result, results[0])
        assert_same_outcome(result, _train_tokens(False, backend))


# ------------------------------------------------------------------------------- processes with different parameters


def _train_stages(stages: list[str], steps: int = REFRESH_EVERY, **options: Any) -> dict[str, dict[str, Tensor]]:
    """Train these parts of the network past one refresh, each in a copy of its own; rank codes and the last masks."""
    models = [network() for _ in stages]
    parts = {
        name: param
        for model, stage in zip(models, stages, strict=True)
        for name, param in model.named_parameters()
        if name.startswith(stage)
    }
    optimizer = RoastAdamW(parts.values(), backend="reference", **{**OPTIONS, **options})
    for step in range(steps):
        for model in models:
            model(batch(step)).square().mean().backward()
        optimizer.step()
        for model in models:
            model.zero_grad()
    assert optimizer.param_groups[0]["refreshes"] == 1
    selective = parts if optimizer.param_groups[0]["selective"] else {}
    return {
        "codes": {name: optimizer.state[param]["rank_code"] for name, param in selective.items()},
        "masks": {name: optimizer.state[param]["exp_avg"] != 0 for name, param in selective.items()},
    }


def _stage_of_this_process(selective: list[bool], steps: int = REFRESH_EVERY) -> dict[str, dict[str, Tensor]]:
    rank = dist.get_rank()
    options = {"process_group": dist.group.WORLD, "selective": selective[rank]}
    return _train_stages([("first", "second")[rank]], steps, **options)


@pytest.mark.parametrize("steps", [REFRESH_EVERY, REFRESH_EVERY + 1])
def test_pipeline_stages_have_ranks_and_masks_of_one_process(steps: int) -> None:
    first, second = run_in_processes(2, _stage_of_this_process, [True, True], steps)
    for kind, expected in _train_stages(["first", "second"], steps).items():
        for name, values in expected.items():
            assert torch.equal((first[kind] | second[kind])[name], values)


def test_a_process_without_selective_parameters_joins_in_the_refresh() -> None:
    first, second = run_in_processes(2, _stage_of_this_process, [False, True])
    assert first["codes"] == {}
    for name, codes in _train_stages(["second"])["codes"].items():
        assert torch.equal(second["codes"][name], codes)


def _frozen_stage() -> int:
    model = network()
    stage = list(model.first.parameters() if dist.get_rank() == 0 else model.second.parameters())
    for param in stage:
        param.requires_grad_(dist.get_rank() == 1)
    optimizer = RoastAdamW(stage, backend="reference", process_group=dist.group.WORLD, **OPTIONS)
    train(model, optimizer)
    refreshes: int = optimizer.param_groups[0]["refreshes"]
    return refreshes


def test_a_process_without_gradients_joins_in_the_refresh() -> None:
    assert run_in_processes(2, _frozen_stage) == [3, 3]


def _largest_shards_only() -> list[int]:
    """Two elements over four processes: two of them have no selective element at all."""
    model = nn.Linear(2, 1, bias=False)
    model.weight = nn.Parameter(torch.tensor([[1.0], [2.0]]))
    fully_shard(model, mesh=init_device_mesh("cpu", (4,)))
    optimizer = RoastAdamW(model.parameters(), backend="reference", **OPTIONS)
    for step in range(2 * REFRESH_EVERY):
        model(torch.tensor([[1.0 + step]])).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    codes = optimizer.state[model.weight]["rank_code"]
    return [codes.to_local().numel(), *whole(codes).flatten().tolist()]


def test_processes_without_a_single_selective_element_join_in_the_refresh() -> None:
    assert run_in_processes(4, _largest_shards_only) == [[1, 64, 192], [1, 64, 192], [0, 64, 192], [0, 64, 192]]


# --------------------------------------------------------------------------------------------------------------- shares


def _stats(way: str | None) -> dict[str, Any]:
    model = network()
    if way:
        WAYS_TO_SHARD[way][0](model)
    optimizer = RoastAdamW(model.parameters(), backend="reference", **OPTIONS)
    train(model, optimizer, last=STEPS - 1)
    stats: dict[str, Any] = optimizer.selection_stats()["groups"][0]
    return stats


@pytest.mark.parametrize("way", ["fsdp2", "hsdp"])
def test_selection_stats_are_those_of_the_whole_model(way: str) -> None:
    expected = _stats(None)
    assert expected["realised_share"] < 1
    for stats in run_in_processes(4, _stats, way):
        assert stats == pytest.approx(expected)
