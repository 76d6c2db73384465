"""LoRA adapters of PEFT: selective like the weights of the blocks that they adapt, unless told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments

from roast_optim import AdversarialEmbedding, RoastAdamW, selective_param_groups
from roast_optim.integrations.huggingface import RoastConfig, RoastTrainer
from tests.models import ARCHITECTURES
from tests.roast_optim.integrations.loops import batch

TARGETS = {
    "bert": ("SEQ_CLS", ["query", "value"]),
    "gpt2_language_model": ("CAUSAL_LM", ["c_attn"]),
    "t5_sequence_to_sequence": ("SEQ_2_SEQ_LM", ["q", "v"]),
}


def adapted(architecture: str, bias: str = "none") -> Any:
    task, targets = TARGETS[architecture]
    config = LoraConfig(
        task_type=task, r=2, target_modules=targets, lora_dropout=0.0, bias=bias, fan_in_fan_out="gpt2" in architecture
    )
    return get_peft_model(ARCHITECTURES[architecture].model(), config).train()


def selective_names(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, bool]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group["selective"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("architecture", TARGETS)
def test_adapters_are_selective_and_nothing_else_is_trained_but_the_head(architecture: str) -> None:
    model = adapted(architecture)
    chosen = selective_names(model, selective_param_groups(model, 0.01))
    assert chosen == {name: "lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_adapters_may_be_always_updated() -> None:
    model = adapted("bert", bias="all")
    chosen = selective_names(model, selective_param_groups(model, 0.01, always_update="lora_"))
    for name, selective in chosen.items():
        assert selective == ("encoder.layer" in name and "lora_" not in name)


def test_that_no_adapter_is_selective_must_be_said_with_the_optimizer() -> None:
    model = adapted("bert")
    with pytest.raises(ValueError, match="no trainable parameter in its transformer blocks that would be selective"):
        selective_param_groups(model, 0.01, always_update="lora_")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert RoastAdamW(trained, selective=False, backend="reference").selection_stats()["expected_share"] == 1.0


@pytest.mark.parametrize("gradient", ["exact", "fast"])
@pytest.mark.parametrize("architecture", TARGETS)
def test_adapters_train_and_frozen_weights_stay(architecture: str, gradient: str) -> None:
    model = adapted(architecture)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    groups = selective_param_groups(model, 0.01)
    optimizer = RoastAdamW(groups, lr=1e-2, alpha=0.5, beta=5.0, refresh_every=2, backend="reference")
    adversary = AdversarialEmbedding(model, gradient=gradient)
    for step in range(4):
        adversary(**batch(step, architecture)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.selection_stats()["refreshes"] == 2
    assert adversary.last_losses["consistency"] > 0
    for name, value in frozen.items():
        assert model.get_parameter(name).equal(value)


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["plain", "gradient checkpointing"])
def test_the_trainer_trains_adapters(tmp_path: Path, options: dict[str, Any]) -> None:
    rows = [{name: value[row] for name, value in batch(0, "gpt2_language_model", 8).items()} for row in range(8)]
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, num_train_epochs=2, learning_rate=1e-2, use_cpu=True,
        report_to=[], logging_steps=1, disable_tqdm=True, save_strategy="no", **options,
    )  # fmt: skip
    config = RoastConfig(alpha=0.5, beta=5.0, refresh_every=None, backend="reference")  # at the end of each epoch
    trainer = RoastTrainer(adapted("gpt2_language_model"), arguments, train_dataset=rows, roast=config)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["updated_share"] < 1
    adapters = [parameter for name, parameter in trainer.model.named_parameters() if "lora_B" in name]
    assert all(parameter.any() for parameter in adapters)  # zero before training
