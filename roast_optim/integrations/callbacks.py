"""What the callbacks of every training framework do with the optimizer."""

from __future__ import annotations

import weakref
from typing import Any

from ..optimizer import RoastAdamW
from ..refresh_schedule import NEVER_MASKED
from ..user_warning import warn


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


def warn_if_never_masked(optimizer: RoastAdamW) -> None:
    """Say at the end of training that it was AdamW's, if elements are selective and no step was masked."""
    steps = optimizer.steps_since_refresh
    if any(group["selective"] for group in optimizer.param_groups) and not optimizer.has_masked:
        after = " (the first ranks came after the last step)" if optimizer.refreshes else f" in {steps} steps"
        warn(f"RoastAdamW: training has ended and no step was masked{after}. {NEVER_MASKED}")


class UpdatedShare:
    """The share of the optimizer's elements that steps update, by the keep probabilities with which they draw.

    It is 1 as long as nothing is masked, and computed once while nothing changes it.
    """

    def __init__(self) -> None:
        self._optimizer: weakref.ref[RoastAdamW] | None = None
        self._options: list[tuple[Any, ...]] = []
        self._share = 1.0
        self._shares: list[float] = []

    def before_step(self, optimizer: RoastAdamW) -> None:
        """Remember the share of a step that is about to be taken."""
        self._shares.append(self.of(optimizer))

    def of_steps(self) -> float | None:
        """The mean over the steps since this was asked last, a fraction of one; None: there was none."""
        if not self._shares:
            return None
        mean = sum(self._shares) / len(self._shares)
        self._shares.clear()
        return mean

    def of(self, optimizer: RoastAdamW) -> float:
        """That of the next step, a fraction of one; where parameters are sharded, every process must ask for it."""
        names = ("refreshes", "selective", "alpha", "beta")
        options = [tuple(group[name] for name in names) for group in optimizer.param_groups]
        known = self._optimizer() if self._optimizer is not None else None
        if known is not optimizer or options != self._options:
            self._share = optimizer.selection_stats(realised=False)["expected_share"]
            self._optimizer, self._options = weakref.ref(optimizer), options
        return self._share
