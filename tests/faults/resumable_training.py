"""A training that saves a checkpoint every few steps and goes on from the last one, as a user would write it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from roast_optim import AdversarialEmbedding, RoastAdamW, selective_param_groups
from tests.models import ARCHITECTURES

STEPS, REFRESH_EVERY, SAVE_EVERY = 120, 9, 4
BERT = ARCHITECTURES["bert"]


def train(folder: str, backend: str) -> None:
    """Train to the end, from the checkpoint in `folder` if there is one; the result is the last checkpoint."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = BERT.model(dropout=0.1)
    adversary = AdversarialEmbedding(model)
    optimizer = RoastAdamW(
        selective_param_groups(model, weight_decay=0.01), lr=1e-2, alpha=0.6, beta=5.0,
        refresh_every=REFRESH_EVERY, backend=backend,
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    first = 0
    if checkpoint(folder).exists():
        saved = load(folder)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["random"])
        first = saved["step"]
    for step in range(first, STEPS):
        adversary(**BERT.batch(seed=step)).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if (step + 1) % SAVE_EVERY == 0:
            save(folder, {name: part.state_dict() for name, part in parts.items()}, step + 1)


def checkpoint(folder: str) -> Path:
    return Path(folder, "checkpoint.pt")


def save(folder: str, states: dict[str, Any], step: int) -> None:
    """A kill at any moment leaves the checkpoint before or this one, never a part of it."""
    unfinished = Path(folder, "unfinished.pt")
    torch.save({**states, "random": torch.get_rng_state(), "step": step}, unfinished)
    os.replace(unfinished, checkpoint(folder))


def load(folder: str) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(checkpoint(folder), weights_only=True)
    return saved
