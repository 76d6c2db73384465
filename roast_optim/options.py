"""The options of RoastAdamW and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
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
    lr, betas, seed = group["lr"], group["betas"], group["seed"]
    _require(not isinstance(lr, Tensor) or lr.numel() == 1, "lr", lr, "a float or a tensor of one element")
    _require(_is_number(lr) and lr >= 0.0, "lr", lr, "a non-negative number")
    _require(_is_pair_of_decay_rates(betas), "betas", betas, "two numbers in [0, 1)")
    _require(
        isinstance(betas[0], Tensor) == isinstance(betas[1], Tensor), "betas", betas, "both floats or both tensors"
    )
    for name in ("eps", "weight_decay"):
        _require(_is_number(group[name]) and group[name] >= 0.0, name, group[name], "a non-negative number")
    alpha, beta = group["alpha"], group["beta"]
    _require(_is_plain_number(alpha) and 0.0 <= alpha <= 1.0, "alpha", alpha, "a percentile rank in [0, 1]")
    _require(_is_plain_number(beta) and 0.0 < beta < float("inf"), "beta", beta, "a positive, finite number")
    _require(_is_integer(seed) and 0 <= seed < 2**64, "seed", seed, "an integer in [0, 2**64)")
    for name in ("amsgrad", "maximize", "capturable", "selective"):
        _require(isinstance(group[name], int) and group[name] in (0, 1), name, group[name], "True or False")
    for name in GROUP_COUNTERS:
        _require(_is_integer(group[name]) and 0 <= group[name] < 2**32, name, group[name], "an integer in [0, 2**32)")


def _is_number(value: object) -> TypeGuard[float | Tensor]:
    return value.numel() == 1 and not value.is_complex() if isinstance(value, Tensor) else isinstance(value, Real)


def _is_plain_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real)


def _is_pair_of_decay_rates(betas: object) -> bool:
    return isinstance(betas, (tuple, list)) and len(betas) == 2 and all(_is_number(b) and 0.0 <= b < 1.0 for b in betas)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_integer(value) and value >= 1


def _require(condition: bool | Tensor, name: str, value: object, right: str) -> None:
    if not condition:
        raise ValueError(f"RoastAdamW: invalid {name}={value!r}; it must be {right}")
