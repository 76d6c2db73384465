"""RoAST in Lightning: a callback. The optimizer comes from ``configure_optimizers``, as every other."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..optimizer import RoastAdamW
from .callbacks import UpdatedShare, refresh_at_epoch_end


class RoastCallback(Callback):
    """Refreshes the ranks at the end of every epoch and logs ``updated_share``.

    ``configure_optimizers`` returns a :class:`.RoastAdamW`; ``training_step`` returns the loss of an
    :class:`.AdversarialEmbedding`, which is made in ``__init__``, before Lightning wraps or compiles the module::

        def __init__(self, model):
            super().__init__()
            self.model = model.train()  # from_pretrained() returns evaluation mode, which Lightning keeps
            self.adversary = AdversarialEmbedding(model)

        def training_step(self, batch, batch_index):
            return self.adversary(**batch).loss

        def configure_optimizers(self):
            return RoastAdamW(selective_param_groups(self.model, weight_decay=0.01), lr=2e-5)

    The refresh comes before a checkpoint of the epoch's last step is written; it is left to the optimizer if that was
    made with ``refresh_every``. ``updated_share`` is the expected share of the trained elements that the next step
    updates.

    Raises:
        ValueError: when training begins, unless exactly one of the optimizers is a RoastAdamW.
    """

    def __init__(self) -> None:
        self._share = UpdatedShare()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizers."""
        _roast_optimizer(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh at the last step of an epoch, and log the share."""
        optimizer = _roast_optimizer(trainer)
        if trainer.is_last_batch:
            refresh_at_epoch_end(optimizer)
        pl_module.log("updated_share", self._share.of(optimizer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refresh if the epoch ended before its last step."""
        refresh_at_epoch_end(_roast_optimizer(trainer))


def _roast_optimizer(trainer: Trainer) -> RoastAdamW:
    found = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, RoastAdamW)]
    if len(found) != 1:
        names = [type(optimizer).__name__ for optimizer in trainer.optimizers]
        raise ValueError(f"configure_optimizers() gave {names}, not one RoastAdamW; RoastCallback needs exactly one")
    return found[0]
