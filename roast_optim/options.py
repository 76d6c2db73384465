"""The options of RoastAdamW and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

# What a group counts; in every state_dict.
GROUP_COUNTERS = {"refreshes": 0, "steps_since_refresh": 0}

_MASK_SCHEDULES = ("step", "refresh")
_IMPORTANCES = ("gradient", "random", "magnitude")


@dataclass(frozen=True)
class RoastOptions:
    """Options of the whole optimizer, as opposed to those of a parameter group; see :class:`.optimizer.RoastAdamW`."""

    refresh_every: int | None
    mask_schedule: str
    rescale: bool
    importance: str
    importance_every: int
    state_dtype: torch.dtype | None

    def __post_init__(self) -> None:
        _require(
            self.refresh_every is None or _is_count(self.refresh_every),
            "refresh_every", self.refresh_every, "a number of steps, at least 1, or None",
        )  # fmt: skip
        _require(
            self.mask_schedule in _MASK_SCHEDULES, "mask_schedule", self.mask_schedule, f"one of {_MASK_SCHEDULES}"
        )
        _require(self.importance in _IMPORTANCES, "importance", self.importance, f"one of {_IMPORTANCES}")
        _require(_is_count(self.importance_every), "importance_every", self.importance_every, "an integer, at least 1")
        _require(
            self.refresh_every is None or self.importance_every <= self.refresh_every,
            "importance_every", self.importance_every,
            f"at most refresh_every ({self.refresh_every}), or no refresh would find any importance",
        )  # fmt: skip
        _require(
            self.state_dtype is None or self.state_dtype.is_floating_point,
            "state_dtype", self.state_dtype, "a floating-point dtype, or None for the parameter's",
        )  # fmt: skip


def check_group(group: dict[str, Any]) -> None:
    """Raise ValueError for a group option out of range, naming it, its value and what would be right."""
    lr, betas = group["lr"], group["betas"]
    _require(not isinstance(lr, Tensor) or lr.numel() == 1, "lr", lr, "a float or a tensor of one element")
    _require(lr >= 0.0, "lr", lr, "a non-negative number")
    _require(len(betas) == 2 and all(0.0 <= beta < 1.0 for beta in betas), "betas", betas, "two numbers in [0, 1)")
    _require(
        isinstance(betas[0], Tensor) == isinstance(betas[1], Tensor), "betas", betas, "both floats or both tensors"
    )
    _require(group["eps"] >= 0.0, "eps", group["eps"], "a non-negative number")
    _require(group["weight_decay"] >= 0.0, "weight_decay", group["weight_decay"], "a non-negative number")
    _require(0.0 <= group["alpha"] <= 1.0, "alpha", group["alpha"], "a percentile rank in [0, 1]")
    _require(0.0 < group["beta"] < float("inf"), "beta", group["beta"], "a positive, finite number")
    seed = group["seed"]
    _require(_is_integer(seed) and 0 <= seed < 2**64, "seed", seed, "an integer in [0, 2**64)")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_integer(value) and value >= 1


def _require(condition: bool | Tensor, name: str, value: object, right: str) -> None:
    if not condition:
        raise ValueError(f"RoastAdamW: invalid {name}={value!r}; it must be {right}")
