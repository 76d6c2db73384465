"""Several optimizers for one model: one numbering of their parameters, one ranking, and a word where these lack."""

from __future__ import annotations

import sys
import weakref
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .optimizer import RoastAdamW

_PARTITIONED = "torch.distributed.optim.zero_redundancy_optimizer"

_SAME_DRAWS = (
    "RoastAdamW: two optimizers take turns and draw their masks with the same seed, so that masks are equal where they "
    "should be independent. If they train one model, give both the same shared_ranks=SharedRanks(), by which they are "
    "numbered and ranked together, or each its own seed"
)
_PARTS_OF_PROCESSES = (
    "RoastAdamW: ZeroRedundancyOptimizer gives each process a part of the parameters, so that ids begin at 0 and ranks "
    "are local in each. Pass optimizer_class=functools.partial(RoastAdamW, process_group=group), the group being that "
    "of these processes"
)

# Who drew masks last, by seed, and who ever did.
_last_to_draw: dict[int, weakref.ref[RoastAdamW]] = {}
_have_drawn: weakref.WeakSet[RoastAdamW] = weakref.WeakSet()


class SharedRanks:
    """What several :class:`.RoastAdamW` that train one model have in common: numbers of parameters, and ranks.

    Each optimizer alone would number its parameters from 0, so that parameters of two of them share their draws, and
    would rank them among themselves. With one handle their parameters are numbered one after the other, in the order
    in which the optimizers are made, and a refresh ranks all of them together: ranks and masks are those of one
    optimizer that has the parameters in the same order. Make the optimizers in the same order before loading their
    ``state_dict``. A refresh is due when every optimizer that has taken steps has taken enough of them.

    Example, with one optimizer per parameter, which steps as soon as its gradient is there:
        >>> import torch
        >>> from roast_optim import RoastAdamW, SharedRanks
        >>> model, ranks = torch.nn.Linear(4, 2), SharedRanks()
        >>> for parameter in model.parameters():
        ...     optimizer = RoastAdamW([parameter], selective=True, shared_ranks=ranks)
        ...     def step(parameter, optimizer=optimizer):
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...     _ = parameter.register_post_accumulate_grad_hook(step)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> [optimizer.steps_since_refresh for optimizer in ranks.optimizers]
        [1, 1]
    """

    def __init__(self) -> None:
        self._optimizers: list[weakref.ref[RoastAdamW]] = []
        self._ids: list[list[int]] = []  # of the parameters of each, in the order of its groups
        self._next_id = 0

    @property
    def optimizers(self) -> list[RoastAdamW]:
        """Those that still exist, in the order in which they were made."""
        return [optimizer for reference in self._optimizers if (optimizer := reference()) is not None]

    def join(self, optimizer: RoastAdamW) -> int:
        """Let an optimizer take part; its constructor does so.

        Returns:
            Its number among those that ever did.

        Raises:
            ValueError: its options of the whole optimizer are not those of the others, or it has a process group.
        """
        if optimizer.process_group is not None:
            raise ValueError("RoastAdamW: shared_ranks and process_group cannot be combined: give one of them")
        for other in self.optimizers[:1]:
            if other.options != optimizer.options:
                raise ValueError(
                    f"RoastAdamW: shared_ranks: {optimizer.options} are not the options of the optimizers that it is "
                    f"ranked with, {other.options}: give all of them the same"
                )
        self._optimizers.append(weakref.ref(optimizer))
        self._ids.append([])
        return len(self._ids) - 1

    def ids(self, number: int, count: int) -> list[int]:
        """The ids of the first ``count`` parameters of that optimizer; those of later groups come after all others."""
        known = self._ids[number]
        while len(known) < count:
            known.append(self._next_id)
            self._next_id += 1
        return known[:count]


def draws_like_another(optimizer: RoastAdamW, seed: int) -> str | None:
    """What to say if another optimizer drew masks with this seed since this one did, which is about to.

    Nothing where somebody has seen to it that draws differ: with ``shared_ranks`` or a process group.
    """
    if optimizer.shared_ranks is not None or optimizer.process_group is not None:
        return None
    reference = _last_to_draw.get(seed)
    other = reference() if reference is not None else None
    if other is optimizer:
        return None
    _last_to_draw[seed] = weakref.ref(optimizer)
    takes_turns = other is not None and optimizer in _have_drawn
    _have_drawn.add(optimizer)
    return _SAME_DRAWS if takes_turns else None


def gets_part_of_a_model() -> str | None:
    """What to say if a constructor is being called by torch's ZeroRedundancyOptimizer, which gives it a part of one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == _PARTITIONED:
            return _PARTS_OF_PROCESSES
        frame = frame.f_back
    return None
