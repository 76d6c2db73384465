"""What the callbacks of every training framework do with the optimizer."""

from __future__ import annotations

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
    if optimizer.options.refresh_every is None and optimizer._steps_since_refresh() > 0:
        optimizer.refresh()


class UpdatedShare:
    """The expected share of the optimizer's elements that a step updates, computed once per refresh."""

    def __init__(self) -> None:
        self._known: tuple[int, float] | None = None

    def of(self, optimizer: RoastAdamW) -> float:
        """A fraction of one; where parameters are sharded, every process must ask for it."""
        refreshes = max(group["refreshes"] for group in optimizer.param_groups)
        if self._known is None or self._known[0] != refreshes:
            self._known = refreshes, optimizer.selection_stats()["expected_share"]
        return self._known[1]
