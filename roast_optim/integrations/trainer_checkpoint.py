"""Checkpoints of a plain Trainer: its two groups of parameters, and its scheduler, in the groups of RoastTrainer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..optimizer import RoastAdamW


class PlainTrainerCheckpoint:
    """Knows in which order a plain Trainer gives the parameters of a model to its optimizer.

    Args:
        model: not wrapped or sharded yet.
        decayed: names of the parameters to which the Trainer gives weight decay.
        optimizer: of the same parameters in other groups.
    """

    def __init__(self, model: nn.Module, decayed: Collection[str], optimizer: RoastAdamW) -> None:
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._saved = [[name for name in names if (name in decayed) == is_decayed] for is_decayed in (True, False)]
        name_of = {parameter: name for name, parameter in model.named_parameters()}
        self._own = [[name_of.get(parameter) for parameter in group["params"]] for group in optimizer.param_groups]

    def matched(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        """The ``state_dict`` in the groups of the optimizer if it is a plain Trainer's; None otherwise, or if it lacks
        parameters.

        Learning rate, betas and the like are those of the saved group of a group's first parameter; weight decay, which
        the two may give to different parameters, is the optimizer's. A hook for ``load_state_dict``.
        """
        saved = state_dict.get("param_groups") if isinstance(state_dict, dict) else None
        if not isinstance(saved, list) or not all(isinstance(group, dict) and "params" in group for group in saved):
            return None
        if any("selective" in group for group in saved):
            return None
        if [len(group["params"]) for group in saved] != [len(names) for names in self._saved]:
            return None
        place = {
            name: (number, index)
            for number, (names, group) in enumerate(zip(self._saved, saved, strict=True))
            for name, index in zip(names, group["params"], strict=True)
        }
        if len(self._own) != len(optimizer.param_groups) or any(name not in place for own in self._own for name in own):
            return None
        groups = []
        for own, group in zip(self._own, optimizer.param_groups, strict=True):
            places = [place[name] for name in own if name is not None]
            options = saved[places[0][0]] if places else {}
            groups.append({**options, "weight_decay": group["weight_decay"], "params": [index for _, index in places]})
        return {**state_dict, "param_groups": groups}


def match_scheduler(scheduler: Any, optimizer: Any) -> None:
    """Give a scheduler that was loaded for other groups the learning rates of the optimizer's own."""
    scheduler = getattr(scheduler, "scheduler", scheduler)  # within Accelerate's
    groups = optimizer.param_groups
    if len(getattr(scheduler, "base_lrs", groups)) != len(groups):
        scheduler.base_lrs = [group.get("initial_lr", group["lr"]) for group in groups]
        scheduler._last_lr = [group["lr"] for group in groups]
