"""Ranks, masks and parameters do not depend on how many processes there are or how parameters are sharded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from roast_optim import RoastAdamW
from tests.distributed.processes import run_in_processes
from tests.distributed.training import OPTIONS, network, replicated, sharded, single, train

pytestmark = pytest.mark.distributed


def assert_equal(results: list[Any], expected: dict[str, Any]) -> None:
    for result in results:
        assert not isinstance(result, str), result
        assert result["refreshes"] == expected["refreshes"]
        for code, expected_code in zip(result["codes"], expected["codes"], strict=True):
            assert torch.equal(code, expected_code)
        for param, expected_param in zip(result["params"], expected["params"], strict=True):
            torch.testing.assert_close(param, expected_param, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ddp_ranks_hold_equal_parameters_after_fifty_steps_without_a_broadcast(world_size: int) -> None:
    results = run_in_processes(world_size, replicated, 50, True)
    for result in results:
        assert not isinstance(result, str), result
        assert result["refreshes"] == 12
        for name in ("params", "codes"):
            assert all(torch.equal(a, b) for a, b in zip(result[name], results[0][name], strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_fsdp2_with_the_same_batch_everywhere_equals_one_process(world_size: int) -> None:
    assert_equal(run_in_processes(world_size, sharded, "fsdp2"), single())


def test_hsdp_counts_replicas_once() -> None:
    assert_equal(run_in_processes(4, sharded, "hsdp"), single())


@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_along_the_second_dimension_equal_one_process(world_size: int) -> None:
    assert_equal(run_in_processes(world_size, sharded, "columns"), single())


def _step_with(seed_of_rank_one: int, refresh_of_rank_one: int) -> str:
    model = network()
    fully_shard(model)
    other = dist.get_rank() == 1
    options = {
        **OPTIONS,
        "seed": seed_of_rank_one if other else OPTIONS["seed"],
        "refresh_every": refresh_of_rank_one if other else OPTIONS["refresh_every"],
    }
    optimizer = RoastAdamW(model.parameters(), backend="reference", **options)
    try:
        train(model, optimizer)
    except RuntimeError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(("seed", "refresh_every"), [(8, 4), (7, 5)], ids=["seed", "refresh_every"])
def test_options_that_differ_between_processes_raise_in_every_process(seed: int, refresh_every: int) -> None:
    for text in run_in_processes(2, _step_with, seed, refresh_every):
        assert "RoastAdamW differs between processes" in text
