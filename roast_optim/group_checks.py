"""What is checked of parameter groups beside the ranges of their options: keys, and what was changed after a check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from operator import is_, itemgetter
from typing import Any

from .options import GROUP_COUNTERS, GROUP_OPTIONS, OPTIONS, check_option

# Keys of a group that others use: torch's own optimizers and schedulers, and learning rates by layer.
_KEYS_OF_OTHERS = (
    "params", "param_names", "name", "differentiable", "decoupled_weight_decay", "initial_lr", "max_lr", "min_lr",
    "base_momentum", "max_momentum", "swa_lr", "lr_scale", "lr_mult",
)  # fmt: skip
_option_values = itemgetter(*GROUP_OPTIONS)

NOT_SUPPORTED = ("foreach", "fused", "differentiable")

UNMARKED = (
    "RoastAdamW: parameters came without a word on `selective`, so all of them are selective: embeddings, "
    "normalisation and head too, which RoAST always updates. Pass the model, RoastAdamW(model, ...), or the groups of "
    "selective_param_groups(model, weight_decay); or selective=True where all are meant"
)


def check_keys(group: Mapping[str, Any]) -> None:
    """Raise ValueError for a key of a group that has no effect, though it looks as if it should have.

    Other keys that this optimizer does not know may be anybody's, and pass as in every torch optimizer.
    """
    known = (*GROUP_OPTIONS, *GROUP_COUNTERS)
    for key in group:
        if key in known or not isinstance(key, str):
            continue
        if key in NOT_SUPPORTED and group[key]:
            raise ValueError(f"RoastAdamW: {key}={group[key]!r} in a parameter group is not supported: leave it out")
        if key in OPTIONS:
            raise ValueError(
                f"RoastAdamW: {key}={group[key]!r} in a parameter group has no effect: it is an option of the whole "
                f"optimizer, RoastAdamW(..., {key}=...)"
            )
        if key not in _KEYS_OF_OTHERS and (like := _alike(key)):
            raise ValueError(
                f"RoastAdamW: unknown option {key}={group[key]!r} in a parameter group: is {like!r} meant? Give a key "
                "of your own another name"
            )


def _alike(key: str) -> str | None:
    """The option that a key may be a misspelling of."""
    lowered = key.lower().replace("-", "_").strip("_ ")
    if lowered in OPTIONS:
        return lowered
    return next(iter(get_close_matches(lowered, OPTIONS, n=1, cutoff=0.75)), None)


class CheckedGroups:
    """The options of all groups when they were checked last, so that a step checks only what has changed since."""

    def __init__(self) -> None:
        self._checked: list[_CheckedGroup] = []

    def check(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raise ValueError for options of a group that have become wrong, are missing or unknown."""
        if len(self._checked) != len(groups):
            self._checked = [_CheckedGroup() for _ in groups]
        for number, (checked, group) in enumerate(zip(self._checked, groups, strict=True)):
            checked.check(number, group)


class _CheckedGroup:
    def __init__(self) -> None:
        self._size = 0
        self._values: tuple[Any, ...] = ()

    def check(self, number: int, group: Mapping[str, Any]) -> None:
        """Raise ValueError for options of the group with this number.

        Compares objects, not values: nothing waits for a number on a device unless another tensor was put there.
        """
        try:
            values = _option_values(group)
        except KeyError as error:
            raise ValueError(
                f"RoastAdamW: group {number} has no {error.args[0]!r} any more: set it, or make the optimizer anew"
            ) from None
        if len(group) == self._size and all(map(is_, values, self._values)):
            return
        try:
            if len(group) != self._size:
                check_keys(group)
            for name, value, before in zip_longest(GROUP_OPTIONS, values, self._values):
                if value is not before:
                    check_option(name, value)
        except ValueError as error:
            raise ValueError(f"{error} (in group {number})") from None
        self._size, self._values = len(group), values
