"""What the processes that train one model must agree on, and how their parameters are numbered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .options import OPTIONS_OF_MASKS, RoastOptions
from .sharding import any_process, mesh_groups, require_same, sum_over_lower_ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Groups = Sequence[dict[str, Any]]


def device_of(param_groups: Groups) -> torch.device:
    """Where what processes tell each other has to lie. A group may be empty."""
    device: torch.device = next(param.device for group in param_groups for param in group["params"])
    return device


def parameters_of_earlier_stages(param_groups: Groups, process_group: ProcessGroup | None) -> int:
    """How many parameters the pipeline stages before this one have, lest two parameters share draws."""
    if process_group is None:
        return 0
    count = sum(len(group["params"]) for group in param_groups)
    return sum_over_lower_ranks(count, process_group, device_of(param_groups))


def only_makes_state(
    param_groups: Groups, grads: Iterable[Tensor], had_state: bool, process_group: ProcessGroup | None
) -> bool:
    """Whether a first step is the one by which distributed checkpoints make state: lr = 0 and all gradients zero.

    Args:
        param_groups: of the optimizer.
        grads: of the step.
        had_state: whether there was state before it.
        process_group: of the optimizer; what counts is what all processes say that share it or a parameter.
    """
    if any(float(group["lr"]) != 0 for group in param_groups):
        return False
    trains = had_state or any(bool(grad.any()) for grad in grads)
    groups = _mesh_groups(param_groups) + ([process_group] if process_group is not None else [])
    return not any_process(trains, groups, device_of(param_groups))


def require_same_masks(param_groups: Groups, options: RoastOptions, process_group: ProcessGroup | None) -> None:
    """Masks agree only where seeds and options do: compare them before it matters rather than after.

    Raises:
        RuntimeError: they differ between processes.
    """
    if groups := _mesh_groups(param_groups):
        of_groups = [{name: group[name] for name in OPTIONS_OF_MASKS} for group in param_groups]
        require_same(f"{options}, groups {of_groups}", groups, device_of(param_groups))
    if process_group is not None:  # these processes may well have other parameter groups
        seeds = sorted({group["seed"] for group in param_groups})
        require_same(f"{options}, seeds {seeds}", [process_group], device_of(param_groups))


def _mesh_groups(param_groups: Groups) -> list[ProcessGroup]:
    return mesh_groups(param for group in param_groups for param in group["params"])
