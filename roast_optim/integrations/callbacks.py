"""What the callbacks of every training framework do with the optimizer."""

from __future__ import annotations

import weakref
from typing import Any

from ..optimizer import RoastAdamW


def roast_optimizer(optimizer: object) -> RoastAdamW:
    """The RoastAdamW inside the wrappers that a framework put around it (their ``.optimizer``).

    Raises:
        ValueError: it is another optimizer.
    """
    inner = optimizer
    while not isinstance(inner, RoastAdamW):
        if not hasattr(inner, "optimizer"):
            raise ValueError(f"optimizer={type(inner).__name__} is not a RoastAdamW, which RoAST needs; train with one")
        inner = inner.optimizer
    return inner


def refresh_at_epoch_end(optimizer: RoastAdamW) -> None:
    """Refresh the ranks, unless the optimizer does so by itself or no step was taken since the last refresh."""
    if optimizer.options.refresh_every is None and optimizer.steps_since_refresh > 0:
        optimizer.refresh()


class UpdatedShare:
    """The expected share of the optimizer's elements that a step updates, computed once while nothing changes it."""

    def __init__(self) -> None:
        self._optimizer: weakref.ref[RoastAdamW] | None = None
        self._options: list[tuple[Any, ...]] = []
        self._share = 1.0

    def of(self, optimizer: RoastAdamW) -> float:
        """A fraction of one; where parameters are sharded, every process must ask for it."""
        names = ("refreshes", "selective", "alpha", "beta")
        options = [tuple(group[name] for name in names) for group in optimizer.param_groups]
        known = self._optimizer() if self._optimizer is not None else None
        if known is not optimizer or options != self._options:
            self._share = optimizer.selection_stats()["expected_share"]
            self._optimizer, self._options = weakref.ref(optimizer), options
        return self._share
