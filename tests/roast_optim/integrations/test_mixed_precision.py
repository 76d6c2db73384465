"""Autocast, GradScaler and bfloat16 parameters, in the plain loop and in the Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from roast_optim import AdversarialEmbedding, RoastAdamW
from roast_optim.integrations.huggingface import RoastConfig, RoastTrainer
from tests.models import ARCHITECTURES
from tests.roast_optim.integrations.loops import MAX_NORM, STEPS, batch, model_and_optimizer, parameters_of, plain_loop
from tests.support.snapshot import assert_same_snapshots, snapshot


def scaled_loop(scaler: torch.amp.GradScaler, autocast: torch.dtype | None = None, **options: Any) -> RoastAdamW:
    model, optimizer = model_and_optimizer(**options)
    adversary = AdversarialEmbedding(model)
    for step in range(STEPS):
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            loss = adversary(**batch(step)).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters_of(optimizer), MAX_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return optimizer


def test_a_scaler_changes_nothing_where_nothing_overflows() -> None:
    assert_same_snapshots(snapshot(scaled_loop(torch.amp.GradScaler("cpu", init_scale=2.0**8))), snapshot(plain_loop()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["bert", "gpt2_language_model"])
def test_autocast_trains_close_to_float32(dtype: torch.dtype, architecture: str) -> None:
    losses: dict[torch.dtype | None, list[float]] = {}
    for autocast in (None, dtype):
        model, optimizer = model_and_optimizer(architecture, selective=False, lr=1e-3)
        adversary = AdversarialEmbedding(model)
        for step in range(STEPS):
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                loss = adversary(**batch(step, architecture)).loss
            assert loss.dtype == torch.float32
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.setdefault(autocast, []).append(loss.item())
    assert losses[dtype] == pytest.approx(losses[None], rel=0.03)


@pytest.mark.parametrize("gradient", ["exact", "fast"])
def test_a_large_loss_in_float16_is_learned_once_the_scales_are_low_enough(gradient: str) -> None:
    """Here the sum over 512 samples: its gradients overflow at the scale with which training begins."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(5 * 8, 3)).train()
    adversary = AdversarialEmbedding(
        model, step_size=0.01, gradient=gradient, loss_fn=nn.CrossEntropyLoss(reduction="sum"), embedding=model[0]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    tokens = torch.randint(9, (512, 5))
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = adversary(tokens, labels=tokens[:, 0] % 3).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(float(adversary.last_losses["task"]))
    assert losses[-1] < 0.5 * losses[0]
    assert scaler.get_scale() >= 2.0**4


def test_a_step_skipped_for_infinite_gradients_changes_nothing_and_lowers_the_scale() -> None:
    model, optimizer = model_and_optimizer()
    plain_loop(last=3, trained=(model, optimizer))
    before = snapshot(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(AdversarialEmbedding(model)(**batch(3)).loss).backward()
    gradient = next(model.parameters()).grad
    assert gradient is not None
    gradient[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert_same_snapshots(snapshot(optimizer), before)
    assert scaler.get_scale() == 2.0**15
    optimizer.zero_grad()
    assert_same_snapshots(snapshot(plain_loop(first=3, trained=(model, optimizer))), snapshot(plain_loop()))


@pytest.mark.parametrize("state_dtype", [None, torch.float32])
def test_bfloat16_parameters_keep_the_dtypes_of_their_state_through_a_checkpoint(
    tmp_path: Path, state_dtype: torch.dtype | None
) -> None:
    def make() -> tuple[torch.nn.Module, RoastAdamW]:
        model, optimizer = model_and_optimizer(state_dtype=state_dtype)
        model.bfloat16()
        return model, optimizer

    whole = make()
    plain_loop(trained=whole)
    half = make()
    plain_loop(last=3, trained=half)
    torch.save({"model": half[0].state_dict(), "optimizer": half[1].state_dict()}, tmp_path / "checkpoint.pt")
    resumed = make()
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed[0].load_state_dict(checkpoint["model"])
    resumed[1].load_state_dict(checkpoint["optimizer"])
    plain_loop(first=3, trained=resumed)
    assert_same_snapshots(snapshot(resumed[1]), snapshot(whole[1]))
    for group in resumed[1].param_groups:
        for parameter in group["params"]:
            state = resumed[1].state[parameter]
            assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == (state_dtype or torch.bfloat16)
            if group["selective"]:
                assert (state["importance"].dtype, state["rank_code"].dtype) == (torch.float32, torch.uint8)


@pytest.mark.parametrize("precision", [{"bf16": True}, {"torch_dtype": torch.bfloat16}], ids=["autocast", "parameters"])
def test_the_trainer_resumes_bit_for_bit(tmp_path: Path, precision: dict[str, Any]) -> None:
    options, dtype = dict(precision), precision.get("torch_dtype", torch.float32)
    options.pop("torch_dtype", None)
    rows = [{name: value[row] for name, value in batch(0, samples=12).items()} for row in range(12)]

    def trained(folder: Path, resume: str | None = None) -> RoastTrainer:
        arguments = TrainingArguments(
            str(folder), per_device_train_batch_size=4, num_train_epochs=2, learning_rate=1e-2, use_cpu=True,
            report_to=[], save_steps=4, disable_tqdm=True, **options,
        )  # fmt: skip
        config = RoastConfig(alpha=0.5, beta=5.0, backend="reference", state_dtype="float32")
        model = ARCHITECTURES["bert"].model(dropout=0.1).to(dtype)
        trainer = RoastTrainer(model, arguments, train_dataset=rows, roast=config)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = trained(tmp_path)
    resumed = trained(tmp_path, resume=str(tmp_path / "checkpoint-4"))
    assert_same_snapshots(snapshot(resumed.optimizer), snapshot(whole.optimizer))
