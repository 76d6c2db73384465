"""The plain loop under Accelerator.prepare: nothing but Accelerate's own calls is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from roast_optim import AdversarialEmbedding, RoastAdamW
from tests.roast_optim.integrations.loops import (
    MAX_NORM,
    STEPS,
    batch,
    halves,
    model_and_optimizer,
    parameters_of,
    plain_loop,
)
from tests.support.snapshot import assert_same_snapshots, snapshot

# More batches than steps, so that Accelerate does not end the accumulation early at the end of the loader.
LOADERS: dict[int, list[dict[str, Tensor]]] = {
    1: [batch(step) for step in range(STEPS + 1)],
    2: [half for step in range(STEPS + 1) for half in halves(step)],
}


def loop(accelerator: Accelerator, accumulation: int = 1, steps: int = STEPS) -> RoastAdamW:
    model, optimizer = model_and_optimizer()
    adversary = AdversarialEmbedding(model)
    loader = DataLoader(LOADERS[accumulation], batch_size=None)  # type: ignore[arg-type]
    adversary.model, prepared, loader = accelerator.prepare(model, optimizer, loader)
    for number, part in enumerate(loader):
        if number == steps * accumulation:
            break
        with accelerator.accumulate(adversary.model):
            loss = adversary(**part).loss
            assert loss.dtype == torch.float32
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(parameters_of(optimizer), MAX_NORM)
            prepared.step()
            prepared.zero_grad()
    return optimizer


def with_scaler(scale: float) -> Accelerator:
    """What Accelerator(mixed_precision="fp16") is on a GPU; on the CPU it takes no scaler by itself."""
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return accelerator


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loop_equals_the_plain_one_bit_for_bit(accumulation: int) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    expected = plain_loop(halves) if accumulation == 2 else plain_loop()
    assert_same_snapshots(snapshot(loop(accelerator, accumulation)), snapshot(expected))


def test_the_state_of_accelerate_resumes_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model, optimizer)
    plain_loop(last=3, trained=(model, optimizer))
    accelerator.save_state(str(tmp_path))

    model, optimizer = model_and_optimizer(seed=4)
    resumed = Accelerator(cpu=True)
    resumed.prepare(model, optimizer)
    resumed.load_state(str(tmp_path))
    plain_loop(first=3, trained=(model, optimizer))
    assert_same_snapshots(snapshot(optimizer), snapshot(plain_loop()))


def test_bfloat16_autocast_trains_with_float32_losses() -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    optimizer = loop(accelerator)
    assert optimizer.param_groups[0]["refreshes"] == 3
    assert all(parameter.isfinite().all() for group in optimizer.param_groups for parameter in group["params"])


def test_a_step_that_the_scaler_skips_changes_nothing_and_is_visible() -> None:
    accelerator = with_scaler(scale=2.0**120)
    model, optimizer = model_and_optimizer()
    adversary = AdversarialEmbedding(model)
    adversary.model, prepared = accelerator.prepare(model, optimizer)
    before = snapshot(optimizer)
    skipped = []
    for step in range(3):
        accelerator.backward(adversary(**batch(step)).loss)
        accelerator.clip_grad_norm_(parameters_of(optimizer), MAX_NORM)
        prepared.step()
        prepared.zero_grad()
        skipped.append(accelerator.optimizer_step_was_skipped)
        if step == 1:
            assert_same_snapshots(snapshot(optimizer), before)
            accelerator.scaler.update(2.0**10)
    assert skipped == [True, True, False]
    assert optimizer.param_groups[0]["steps_since_refresh"] == 1


def test_clipping_sees_unscaled_gradients() -> None:
    optimizer = loop(with_scaler(scale=2.0**12), steps=1)
    beta1 = optimizer.defaults["betas"][0]
    norm = torch.stack([state["exp_avg"].norm() for state in optimizer.state.values()]).norm() / (1 - beta1)
    assert float(norm) == pytest.approx(MAX_NORM, rel=1e-3)
