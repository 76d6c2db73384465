"""The scalars of a group's next step, from the options of the group and of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from .kernels.step import Selection, StepOptions
from .masking import selection_tables
from .options import GROUP_OPTIONS, RoastOptions
from .sharding import whole

# Options of a group that a step takes under the same name.
_NAMED_ALIKE = [each.name for each in fields(StepOptions) if each.name in GROUP_OPTIONS and each.name != "lr"]


def step_options(
    group: dict[str, Any], options: RoastOptions, device: torch.device, gradient_factor: float | Tensor = 1.0
) -> StepOptions:
    """Those of a step of parameters on ``device``, which is counted in ``steps_since_refresh`` already."""
    return StepOptions(
        lr=_scalar(group["lr"]),
        beta1=_scalar(group["betas"][0]),
        beta2=_scalar(group["betas"][1]),
        accumulate=accumulates(group, options) and group["steps_since_refresh"] % options.importance_every == 0,
        selection=_selection(group, options, device),
        stochastic_rounding=bool(options.stochastic_rounding),
        rounding_seed=group["seed"],
        gradient_factor=gradient_factor,
        **{name: group[name] for name in _NAMED_ALIKE},
    )


def checked_gradient_factor(value: object) -> float | Tensor:
    """The argument of ``step``: a number, or a tensor of no dimensions, whole where it was spread over processes.

    Raises:
        ValueError: it is none, or a number that is not finite.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return whole(value.detach()).reshape(())
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    shown = f"a tensor of {value.numel()} elements of {value.dtype}" if isinstance(value, Tensor) else repr(value)
    raise ValueError(
        f"RoastAdamW.step: invalid gradient_factor={shown}; it must be a finite number or a tensor of one real element"
    )


def without_effect(param_groups: Sequence[dict[str, Any]], options: RoastOptions) -> str | None:
    """Which of the options changes nothing in any step with these parameters, and what to do about it."""
    dtypes = {param.dtype for group in param_groups for param in group["params"]} | {options.state_dtype}
    if options.stochastic_rounding and not dtypes & {torch.bfloat16, torch.float16}:
        return (
            "RoastAdamW: stochastic_rounding=True changes nothing, because no parameter and no moment is bfloat16 or "
            "float16: leave it out, or convert the model, as in model.to(torch.bfloat16)"
        )
    return None


def accumulates(group: dict[str, Any], options: RoastOptions) -> bool:
    """Whether steps of the group accumulate importance at all."""
    return bool(group["selective"]) and options.importance == "gradient"


def prepare_selections(groups: list[dict[str, Any]], options: RoastOptions) -> None:
    """Put the tables of all selections where the next steps read them, for a CUDA graph may hold the very next one."""
    for group in groups:
        for device in {param.device for param in group["params"]}:
            _selection(group, options, device)


def _selection(group: dict[str, Any], options: RoastOptions, device: torch.device) -> Selection | None:
    if not group["selective"] or group["refreshes"] == 0:
        return None
    thresholds, rescaling = selection_tables(group["alpha"], group["beta"], options.rescale, device)
    draw_number = group["refreshes"] if options.mask_schedule == "refresh" else None
    return Selection(group["seed"], thresholds, rescaling, draw_number, options.selection)


def _scalar(value: float | Tensor) -> float | Tensor:
    """A number, or a tensor of no dimensions, from an option that may be a tensor of one element of any shape."""
    return value.reshape(()) if isinstance(value, Tensor) else value
