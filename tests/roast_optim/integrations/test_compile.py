"""torch.compile of the model and of the step, and gradient checkpointing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import TrainingArguments

from roast_optim import AdversarialEmbedding, RoastAdamW
from roast_optim.integrations.huggingface import RoastConfig, RoastTrainer
from tests.models import ARCHITECTURES
from tests.roast_optim.integrations.loops import batch, model_and_optimizer
from tests.support.snapshot import assert_same_snapshots, snapshot


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def gradients(adversary: AdversarialEmbedding, model: nn.Module, architecture: str) -> dict[str, Tensor]:
    adversary(**batch(0, architecture)).loss.backward()
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


def assert_close(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert result.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(result[name], gradient, rtol=1e-3, atol=1e-5 * largest)


def eager_gradients(architecture: str) -> dict[str, Tensor]:
    model = ARCHITECTURES[architecture].model()
    return gradients(AdversarialEmbedding(model), model, architecture)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", ["bert", "gpt2_language_model"])
def test_a_model_compiled_after_the_adversary_was_made_has_the_gradients_of_the_eager_one(
    architecture: str, compiler: str
) -> None:
    model = ARCHITECTURES[architecture].model()
    adversary = AdversarialEmbedding(model)
    model.compile(backend=compiler)
    assert_close(gradients(adversary, model, architecture), eager_gradients(architecture))


def test_a_model_compiled_before_is_refused() -> None:
    model = torch.compile(ARCHITECTURES["bert"].model())
    with pytest.raises(ValueError, match=r"compiled already.*AdversarialEmbedding first"):
        AdversarialEmbedding(model)


@pytest.mark.parametrize("architecture", ["bert", "gpt2_language_model", "t5_sequence_to_sequence"])
def test_gradient_checkpointing_has_the_same_gradients(architecture: str) -> None:
    model: Any = ARCHITECTURES[architecture].model()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    adversary = AdversarialEmbedding(model)
    assert_close(gradients(adversary, model, architecture), eager_gradients(architecture))


@pytest.mark.parametrize(
    "options", [{"gradient_checkpointing": True}, pytest.param({"torch_compile": True}, marks=pytest.mark.slow)]
)
def test_the_trainer_checkpoints_gradients_and_compiles(tmp_path: Path, options: dict[str, Any]) -> None:
    losses = []
    rows = [{name: value[row] for name, value in batch(0, samples=8).items()} for row in range(8)]
    for more in ({}, options):
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=4, learning_rate=1e-3, max_steps=2, use_cpu=True, report_to=[],
            logging_steps=1, disable_tqdm=True, save_strategy="no", **more,
        )  # fmt: skip
        config = RoastConfig(backend="reference")
        trainer = RoastTrainer(ARCHITECTURES["bert"].model(), arguments, train_dataset=rows, roast=config)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def _train_with(step: Any, optimizer: RoastAdamW, model: nn.Module, steps: int) -> None:
    adversary = AdversarialEmbedding(model)
    for number in range(steps):
        adversary(**batch(number)).loss.backward()
        step()
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"].mul_(0.9)


@pytest.mark.filterwarnings("ignore:.*record_function.* will be ignored")
def test_a_compiled_step_compiles_once_and_equals_the_eager_one(backend: str) -> None:
    compiled_graphs = CompileCounter()
    snapshots = []
    for compiled in (False, True):
        model, optimizer = model_and_optimizer(lr=torch.tensor(1e-2), backend=backend)
        step = torch.compile(optimizer.step, backend=compiled_graphs) if compiled else optimizer.step
        _train_with(step, optimizer, model, 2)
        graphs = compiled_graphs.frame_count
        with torch.compiler.set_stance("fail_on_recompile"):
            _train_with(step, optimizer, model, 4)
        assert compiled_graphs.frame_count == graphs
        snapshots.append(snapshot(optimizer))
    for (options, parameters), (expected_options, expected_parameters) in zip(*snapshots, strict=True):
        assert options.pop("lr").equal(expected_options.pop("lr"))
        assert_same_snapshots([(options, parameters)], [(expected_options, expected_parameters)])
