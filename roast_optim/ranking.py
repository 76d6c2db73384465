"""Ranking the elements of an optimizer, or of several that train one model, by their importance."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from torch.nn.parameter import is_lazy

from .importance import RankedParts, fill_scores_, refresh_rank_codes
from .options import RoastOptions
from .parameters import Parameters
from .processes import device_of, require_same_masks
from .refresh_schedule import count_refresh
from .state import State
from .step_options import prepare_selections

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RankedOptimizer(Protocol):
    """What is read and written of an optimizer whose elements are ranked."""

    param_groups: list[dict[str, Any]]
    options: RoastOptions
    process_group: ProcessGroup | None
    parameters: Parameters

    @property
    def state(self) -> MutableMapping[Tensor, State]:
        """Of each parameter."""


def rank_together(optimizers: Sequence[RankedOptimizer], warn: Callable[[str], None]) -> None:
    """Rank all selective elements of the optimizers together, and reset their importance to zero.

    Args:
        optimizers: with the same options of the whole optimizer, and no process group unless it is one alone.
        warn: told if nothing was accumulated, where the ranks stay as they are.
    """
    first, parts = optimizers[0], RankedParts()
    for optimizer in optimizers:
        _add(optimizer, parts)
    if not parts.tensors() and first.process_group is None:
        return

    def count(ranked: bool) -> None:
        for optimizer in optimizers:
            count_refresh(optimizer.param_groups, ranked)

    ranked = refresh_rank_codes(parts.tensors(), first.process_group, device_of(first.param_groups), count)
    for optimizer in optimizers:
        prepare_selections(optimizer.param_groups, optimizer.options)
    if not ranked:
        warn(
            "refresh() found no accumulated importance and keeps the ranks: take a step with non-zero gradients "
            "(or one inside measure_importance()) between two refreshes"
        )


def _add(optimizer: RankedOptimizer, parts: RankedParts) -> None:
    groups, parameters = optimizer.param_groups, optimizer.parameters
    require_same_masks(groups, optimizer.options, optimizer.process_group)
    parameters.number_after_earlier_stages(groups)
    for group in groups:
        for param in group["params"]:
            if group["selective"] and not is_lazy(param) and (param.requires_grad or optimizer.state.get(param)):
                position = parameters.position_of(param, groups)
                state = parameters.state_of(param, group, optimizer.state[param], position)
                fill_scores_(optimizer.options.importance, state["importance"], param, group["seed"], position)
                parts.add(param, state, parameters.backend_of(param.device))
