"""When ranks are computed anew, and what the counters of the parameter groups tell of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .options import RoastOptions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Groups = Sequence[dict[str, Any]]

# After so many steps without masks it is said that there are none: eight times the first interval of "auto", about what
# an epoch over a few thousand sentences takes, and early enough to begin again.
_STEPS_WITHOUT_MASKS = 256

NEVER_MASKED = (
    'Until the first refresh has ranked the elements this is AdamW. Leave refresh_every at "auto", set it to less than '
    "the training takes in optimizer steps (not micro-batches), or measure importance first and call refresh()"
)


def ranked_groups(param_groups: Groups, process_group: ProcessGroup | None) -> list[dict[str, Any]]:
    """Those whose elements are ranked.

    A process of a process group joins in the others' refresh even if nothing of its own is selective.
    """
    return [group for group in param_groups if group["selective"] or process_group is not None]


def refreshes(groups: Groups) -> int:
    """Refreshes that have ranked the elements of the groups so far; 0 without a group."""
    return max((group["refreshes"] for group in groups), default=0)


def steps_since_refresh(groups: Groups) -> int:
    """Steps that were taken since the last of them; 0 without a group."""
    return max((group["steps_since_refresh"] for group in groups), default=0)


def has_masked(groups: Groups) -> bool:
    """Whether a step was taken with masks, that is after the first refresh."""
    return any(
        group["refreshes"] + (group["steps_since_refresh"] > 0) > 1 for group in groups if group["refreshes"] > 0
    )


class Counted(Protocol):
    """What is read of an optimizer to know whether its refresh is due."""

    options: RoastOptions

    @property
    def refreshes(self) -> int:
        """So far."""

    @property
    def steps_since_refresh(self) -> int:
        """Since the last of them."""


def is_due(optimizer: Counted) -> bool:
    """Whether it has taken the steps after which its ranks are computed anew."""
    return 0 < optimizer.options.interval(optimizer.refreshes) <= optimizer.steps_since_refresh


def all_are_due(optimizers: Iterable[Counted]) -> bool:
    """Whether all that have taken steps since their refresh are due, and at least one has."""
    stepping = [optimizer for optimizer in optimizers if optimizer.steps_since_refresh > 0]
    return len(stepping) > 0 and all(map(is_due, stepping))


def without_masks(optimizer: Counted) -> str | None:
    """What to say once so many steps were taken that masks should have come, and none did."""
    if optimizer.steps_since_refresh == _STEPS_WITHOUT_MASKS and optimizer.refreshes == 0:
        return f"RoastAdamW has taken {_STEPS_WITHOUT_MASKS} steps, none of them masked. {NEVER_MASKED}"
    return None


def count_step(group: dict[str, Any]) -> None:
    """A step of the group is about to be taken."""
    group["steps_since_refresh"] += 1


def count_refresh(groups: Groups, ranked: bool) -> None:
    """A refresh is done, in which elements were ranked or nothing had been accumulated."""
    for group in groups:
        group["steps_since_refresh"] = 0
        group["refreshes"] += int(ranked)
