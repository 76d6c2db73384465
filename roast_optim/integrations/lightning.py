"""RoAST in Lightning: a callback. The optimizer comes from ``configure_optimizers``, as every other."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..optimizer import RoastAdamW
from .callbacks import UpdatedShare, refresh_at_epoch_end, warn_if_never_masked


class RoastCallback(Callback):
    """Logs ``updated_share``, and refreshes the ranks at the end of every epoch where the optimizer does not itself.

    ``configure_optimizers`` returns a :class:`.RoastAdamW`; ``training_step`` returns the loss of an
    :class:`.AdversarialEmbedding`, which is made in ``__init__``, before Lightning wraps or compiles the module::

        def __init__(self, model):
            super().__init__()
            self.model = model.train()  # from_pretrained() returns evaluation mode, which Lightning keeps
            self.adversary = AdversarialEmbedding(model)

        def training_step(self, batch, batch_index):
            return self.adversary(**batch).loss

        def configure_optimizers(self):
            return RoastAdamW(self.model, lr=2e-5, weight_decay=0.01)

    The refresh is left to the optimizer unless that was made with ``refresh_every=None``; it comes before a checkpoint
    of the epoch's last step is written. ``updated_share`` is the share of the trained elements that the last step
    updated, by the keep probabilities with which it drew: 1 before the first ranks. Training that ends without a single
    masked step says so.

    Raises:
        ValueError: when training begins, unless exactly one of the optimizers is a RoastAdamW.
    """

    def __init__(self) -> None:
        self._share = UpdatedShare()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizers."""
        _roast_optimizer(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Remember with what share the step draws."""
        if isinstance(optimizer, RoastAdamW):
            self._share.before_step(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh at the last step of an epoch, and log the share."""
        optimizer = _roast_optimizer(trainer)
        if trainer.is_last_batch:
            refresh_at_epoch_end(optimizer)
        if (share := self._share.of_steps()) is not None:
            pl_module.log("updated_share", share)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refresh if the epoch ended before its last step."""
        refresh_at_epoch_end(_roast_optimizer(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say if nothing was ever masked."""
        warn_if_never_masked(_roast_optimizer(trainer))


def _roast_optimizer(trainer: Trainer) -> RoastAdamW:
    found = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, RoastAdamW)]
    if len(found) != 1:
        names = [type(optimizer).__name__ for optimizer in trainer.optimizers]
        raise ValueError(f"configure_optimizers() gave {names}, not one RoastAdamW; RoastCallback needs exactly one")
    return found[0]
