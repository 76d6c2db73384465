"""RoastCallback and closure-based steps with the real Lightning Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from roast_optim import AdversarialEmbedding, RoastAdamW
from roast_optim.integrations.lightning import RoastCallback
from tests.roast_optim.integrations.loops import MAX_NORM, STEPS, batch, halves, model_and_optimizer, plain_loop
from tests.support.snapshot import assert_same_snapshots, snapshot


def test_lightning_refuses_to_clip_for_an_optimizer_that_says_that_it_unscales() -> None:
    """Why RoastAdamW does not say so, as docs/recipes/README.md has it."""
    _, optimizer = model_and_optimizer()
    precision = MixedPrecision("16-mixed", "cpu")
    precision.clip_gradients(optimizer, 1.0)
    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping because it performs unscaling"):
        precision.clip_gradients(optimizer, 1.0)


class Module(LightningModule):
    def __init__(self, dropout: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.model: nn.Module
        self.model, self.optimizer = model_and_optimizer(dropout=dropout, **options)
        self.model.train()
        self.adversary = AdversarialEmbedding(self.model)

    def training_step(self, part: dict[str, Tensor], batch_index: int) -> Tensor:
        loss: Tensor = self.adversary(**part).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer


class ResumableLoader:
    """Goes on where it stood when it was saved; without that, Lightning begins the epoch's data anew."""

    def __init__(self, parts: list[dict[str, Tensor]]) -> None:
        self.parts = parts
        self.position = 0

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.position %= len(self.parts)
        while self.position < len(self.parts):
            self.position += 1
            yield self.parts[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def fit(
    module: Module, parts: list[dict[str, Tensor]], epochs: int = 1, resume: Path | None = None, **options: Any
) -> Any:
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        **{"enable_checkpointing": False, "gradient_clip_val": MAX_NORM, **options},
    )  # fmt: skip
    trainer.fit(module, ResumableLoader(parts), ckpt_path=resume, weights_only=False if resume else None)
    return trainer


@pytest.mark.parametrize("accumulation", [1, 2])
def test_closure_based_steps_equal_the_plain_loop_bit_for_bit(accumulation: int) -> None:
    module = Module()
    parts = [part for step in range(STEPS) for part in (halves(step) if accumulation == 2 else [batch(step)])]
    fit(module, parts, accumulate_grad_batches=accumulation)
    expected = plain_loop(halves) if accumulation == 2 else plain_loop()
    assert_same_snapshots(snapshot(module.optimizer), snapshot(expected))


def test_the_callback_refreshes_at_the_end_of_every_epoch_and_logs_the_share() -> None:
    module = Module(refresh_every=None)
    trainer = fit(module, [batch(step) for step in range(3)], epochs=2, callbacks=[RoastCallback()])
    assert module.optimizer.param_groups[0]["refreshes"] == 2
    assert 0 < float(trainer.callback_metrics["updated_share"]) < 1


def test_refresh_every_is_left_to_the_optimizer() -> None:
    module = Module(refresh_every=4)
    fit(module, [batch(step) for step in range(3)], epochs=2, callbacks=[RoastCallback()])
    group = module.optimizer.param_groups[0]
    assert (group["refreshes"], group["steps_since_refresh"]) == (1, 2)


@pytest.mark.parametrize("step", [2, 3, 4], ids=["within an epoch", "at its end", "after its end"])
def test_training_resumes_bit_for_bit(tmp_path: Path, step: int) -> None:
    parts = [batch(number) for number in range(3)]

    def trained(resume: Path | None = None) -> RoastAdamW:
        module = Module(refresh_every=None)
        checkpoint = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        fit(module, parts, epochs=2, resume=resume, callbacks=[RoastCallback(), checkpoint], enable_checkpointing=True)
        return module.optimizer

    whole = trained()
    resumed = trained(tmp_path / f"step={step}.ckpt")
    assert_same_snapshots(snapshot(resumed), snapshot(whole))


def test_a_step_skipped_by_the_scaler_changes_nothing() -> None:
    module = Module(refresh_every=None)
    before = snapshot(module.optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    fit(module, [batch(0), batch(1)], plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert_same_snapshots(snapshot(module.optimizer), before)
    assert scaler.get_scale() == 2.0**118


def test_bfloat16_autocast_trains() -> None:
    module = Module()
    fit(module, [batch(step) for step in range(STEPS)], precision="bf16-mixed")
    assert module.optimizer.param_groups[0]["refreshes"] == 3


def test_another_optimizer_is_refused() -> None:
    module = Module()
    module.optimizer = torch.optim.AdamW(module.parameters())  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"AdamW.*RoastCallback needs exactly one"):
        fit(module, [batch(0)], callbacks=[RoastCallback()])
