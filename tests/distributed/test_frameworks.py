"""The integrations in several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from roast_optim import AdversarialEmbedding, RoastAdamW, selective_param_groups
from roast_optim.integrations.huggingface import RoastConfig, RoastTrainer
from tests.distributed.processes import run_in_processes
from tests.distributed.training import whole
from tests.models import ARCHITECTURES

pytestmark = pytest.mark.distributed

SAMPLES, BATCH = 16, 4


def _trained(folder: Path, architecture: str, world_size: int, accumulation: int) -> dict[str, Any]:
    batch = ARCHITECTURES[architecture].batch(samples=SAMPLES)
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=BATCH // world_size // accumulation, num_train_epochs=2,
        gradient_accumulation_steps=accumulation, learning_rate=1e-3, use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = RoastTrainer(
        ARCHITECTURES[architecture].model(),
        arguments,
        train_dataset=[{name: value[row] for name, value in batch.items()} for row in range(SAMPLES)],
        roast=RoastConfig(alpha=0.5, beta=5.0, consistency_weight=0.5, backend="reference"),
    )
    trainer.train()
    params = {name: whole(param) for name, param in trainer.model.named_parameters()}
    return {"logs": [entry for entry in trainer.state.log_history if "loss" in entry], "params": params}


@pytest.mark.parametrize("architecture", ["bert", "gpt2_language_model"])
@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (2, 2)])
def test_the_trainer_is_the_same_in_several_processes(
    tmp_path: Path, architecture: str, world_size: int, accumulation: int
) -> None:
    expected = _trained(tmp_path, architecture, 1, 1)
    first, *others = run_in_processes(world_size, _trained, tmp_path, architecture, world_size, accumulation)
    for entry, expected_entry in zip(first["logs"][:4], expected["logs"][:4], strict=True):  # before masks differ
        assert entry == pytest.approx(expected_entry, rel=1e-4)
    assert first["logs"][-1]["updated_share"] == pytest.approx(expected["logs"][-1]["updated_share"], rel=1e-2)
    for other in others:
        assert all(torch.equal(param, other["params"][name]) for name, param in first["params"].items())


def _with_accelerate(world_size: int) -> dict[str, Any]:
    """Accelerate makes FSDP2 shards only with accelerators by itself: tell it that this is such a machine."""
    model: nn.Module = ARCHITECTURES["bert"].model()
    accelerator = Accelerator(cpu=True)
    if world_size > 1:
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, cpu_ram_efficient_loading=False, auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["BertLayer"],
        )  # fmt: skip
    adversary = AdversarialEmbedding(model)
    optimizer = RoastAdamW(
        selective_param_groups(model, 0.01), lr=1e-3, alpha=0.5, beta=5.0, refresh_every=2, backend="reference"
    )
    adversary.model, prepared = accelerator.prepare(model, optimizer)
    losses = []
    for step in range(5):
        loss = adversary(**ARCHITECTURES["bert"].batch(samples=BATCH, seed=step)).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(adversary.model.parameters(), 1.0)
        prepared.step()
        prepared.zero_grad()
        losses.append(loss.item())
    sharded = all(isinstance(param, DTensor) for param in optimizer.state)
    return {"sharded": sharded, "losses": losses, "share": optimizer.selection_stats()["expected_share"]}


def _in_one_process() -> dict[str, Any]:
    return _with_accelerate(1)


def test_accelerate_may_put_shards_in_the_place_of_the_parameters_that_the_optimizer_was_given() -> None:
    (expected,) = run_in_processes(1, _in_one_process)
    assert not expected["sharded"]
    for result in run_in_processes(2, _with_accelerate, 2):
        assert result["sharded"]
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-3)
        assert result["share"] == pytest.approx(expected["share"], rel=1e-3)
