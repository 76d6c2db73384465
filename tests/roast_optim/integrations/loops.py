"""Plain training loops, with which those of the frameworks are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from roast_optim import AdversarialEmbedding, RoastAdamW, selective_param_groups
from tests.models import ARCHITECTURES

STEPS, REFRESH_EVERY = 6, 2
MAX_NORM = 0.5


def model_and_optimizer(
    architecture: str = "bert", dropout: float = 0.0, **options: Any
) -> tuple[nn.Module, RoastAdamW]:
    """A tiny model and an optimizer that refreshes twice in ``STEPS`` steps."""
    model = ARCHITECTURES[architecture].model(dropout=dropout)
    defaults: dict[str, Any] = {
        "lr": 1e-2, "alpha": 0.5, "beta": 5.0, "refresh_every": REFRESH_EVERY, "backend": "reference", "seed": 3,
    }  # fmt: skip
    return model, RoastAdamW(selective_param_groups(model, 0.01), **defaults | options)


def batch(step: int, architecture: str = "bert", samples: int = 4) -> dict[str, Tensor]:
    """The batch of one step."""
    return ARCHITECTURES[architecture].batch(samples=samples, seed=step)


def halves(step: int) -> list[dict[str, Tensor]]:
    """The same batch as two micro-batches."""
    return [{name: value[start : start + 2] for name, value in batch(step).items()} for start in (0, 2)]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the optimizer's order, in which every loop sums their gradients' norms."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def plain_loop(
    micro_batches: Callable[[int], list[dict[str, Tensor]]] = lambda step: [batch(step)],
    first: int = 0,
    last: int = STEPS,
    trained: tuple[nn.Module, RoastAdamW] | None = None,
) -> RoastAdamW:
    """The loop of the README, with gradient accumulation and clipping."""
    model, optimizer = trained or model_and_optimizer()
    adversary = AdversarialEmbedding(model)
    for step in range(first, last):
        parts = micro_batches(step)
        for part in parts:
            (adversary(**part).loss / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(parameters_of(optimizer), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer
