"""In several processes, the gradients of the objective are the mean of those of each process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from roast_optim.adversarial import AdversarialEmbedding
from tests.distributed.processes import run_in_processes
from tests.models import ARCHITECTURES

pytestmark = pytest.mark.distributed

BERT = ARCHITECTURES["bert"]
WORLD_SIZE = 2


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def expected(gradient: str) -> dict[str, Tensor]:
    """The mean over the batches of the processes."""
    model = BERT.model()
    for rank in range(WORLD_SIZE):
        loss = AdversarialEmbedding(model, gradient=gradient)(**BERT.batch(seed=rank)).loss
        (loss / WORLD_SIZE).backward()
    return gradients(model)


def assert_close(actual: dict[str, Tensor], wanted: dict[str, Tensor], step: str) -> None:
    assert actual.keys() == wanted.keys(), step
    for name, value in wanted.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6, msg=lambda text: f"{step}: {text}")


def replicated(gradient: str) -> dict[str, dict[str, Tensor]]:
    """The gradients of every step, by what is special about it."""
    steps = {}
    for options in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
        model = DistributedDataParallel(BERT.model(), **options)
        adversary = AdversarialEmbedding(model, gradient=gradient)
        batch = BERT.batch(seed=distributed.get_rank())
        for step in range(3):  # the first one is special to the wrapper, with static_graph above all
            model.zero_grad()
            adversary(**batch).loss.backward()
            steps[f"{options}, step {step}"] = gradients(model.module)
        if "static_graph" not in options:
            model.zero_grad()
            with model.no_sync():
                (adversary(**batch).loss / 2).backward()
            (adversary(**batch).loss / 2).backward()
            steps[f"{options}, accumulated"] = gradients(model.module)
    return steps


def sharded() -> list[dict[str, Tensor]]:
    model = BERT.model()
    adversary = AdversarialEmbedding(model)
    for block in model.bert.encoder.layer:
        fully_shard(block)
    fully_shard(model)
    steps = []
    for _ in range(2):
        model.zero_grad()
        adversary(**BERT.batch(seed=distributed.get_rank())).loss.backward()
        steps.append(gradients(model))
    return steps


@pytest.mark.parametrize("gradient", ["exact", "fast"])
def test_distributed_data_parallel(gradient: str) -> None:
    wanted = expected(gradient)
    for steps in run_in_processes(WORLD_SIZE, replicated, gradient):
        for name, step in steps.items():
            assert_close(step, wanted, name)


def test_fully_sharded() -> None:
    wanted = expected("exact")
    for steps in run_in_processes(WORLD_SIZE, sharded):
        for number, step in enumerate(steps):
            assert_close(step, wanted, f"step {number}")
