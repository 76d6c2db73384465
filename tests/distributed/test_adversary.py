"""The adversary with its two forward passes, and the whole method, in several processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from roast_optim import AdversarialEmbedding, RoastAdamW, selective_param_groups
from tests.distributed.processes import Failure, outcomes_in_processes, run_in_processes
from tests.distributed.training import whole
from tests.models import ARCHITECTURES

pytestmark = pytest.mark.distributed

SAMPLES = 8


def _model(architecture: str, unused: bool) -> nn.Module:
    model = ARCHITECTURES[architecture].model()
    if unused:
        model.unused = nn.Linear(2, 2)
    return model


def _share_of_batch(architecture: str, step: int, world_size: int) -> dict[str, Tensor]:
    batch = ARCHITECTURES[architecture].batch(samples=SAMPLES, seed=step)
    if world_size == 1:
        return batch
    share, rank = SAMPLES // world_size, dist.get_rank()
    return {name: value[rank * share : (rank + 1) * share] for name, value in batch.items()}


def _adversary(way: str, model: nn.Module, gradient: str) -> AdversarialEmbedding:
    if way.startswith("ddp"):
        model = DistributedDataParallel(model, find_unused_parameters=way.endswith("unused"))
    adversary = AdversarialEmbedding(model, gradient=gradient, consistency_weight=0.5)
    if way == "fsdp2":
        for block in model.bert.encoder.layer:
            fully_shard(block)
        fully_shard(model)
    return adversary


def _gradients(way: str, gradient: str, world_size: int) -> dict[str, Tensor]:
    """Gradients of the second of two passes over the batch, the first of which is thrown away."""
    model = _model("bert", unused=way.endswith("unused"))
    adversary = _adversary(way, model, gradient)
    for step in (0, 1):
        model.zero_grad()
        adversary(**_share_of_batch("bert", step, world_size)).loss.backward()
    return {name: whole(param.grad) for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.parametrize(
    ("way", "gradient"),
    [("ddp", "exact"), ("ddp", "fast"), ("ddp with unused", "exact"), ("ddp with unused", "fast"), ("fsdp2", "exact")],
)
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_gradients_are_those_of_one_process_with_the_whole_batch(world_size: int, way: str, gradient: str) -> None:
    expected = _gradients("one process", gradient, 1)
    largest = max(float(value.abs().max()) for value in expected.values())
    for result in run_in_processes(world_size, _gradients, way, gradient, world_size):
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, rtol=1e-4, atol=1e-5 * largest)


def _train(way: str) -> dict[str, Any]:
    model = _model("bert", unused=False)
    adversary = _adversary(way, model, "exact")
    optimizer = RoastAdamW(
        selective_param_groups(model, 0.01), lr=1e-3, alpha=0.5, beta=5.0, refresh_every=3, backend="reference"
    )
    losses = []
    for step in range(8):
        output = adversary(**_share_of_batch("bert", step, dist.get_world_size()))
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    params = {name: whole(param) for name, param in model.named_parameters()}
    return {"params": params, "losses": losses, "stats": optimizer.selection_stats()}


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_the_whole_method_keeps_all_processes_equal(way: str) -> None:
    first, *others = run_in_processes(2, _train, way)
    assert first["stats"]["refreshes"] == 2
    assert 0 < first["stats"]["expected_share"] < 1
    for other in others:
        assert other["stats"] == first["stats"]
        assert other["losses"] != first["losses"]
        for name, param in first["params"].items():
            assert torch.equal(other["params"][name], param)


def test_held_gradients_of_a_sharded_model_are_refused_in_every_process() -> None:
    for result in outcomes_in_processes(2, _gradients, "fsdp2", "fast", 2):
        assert isinstance(result, Failure)
        assert 'gradient="exact"' in result
