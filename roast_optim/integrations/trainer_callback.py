"""A callback for any Trainer whose optimizer is RoastAdamW."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .callbacks import UpdatedShare, refresh_at_epoch_end, roast_optimizer, warn_if_never_masked


class RoastCallback(TrainerCallback):
    """For any Trainer whose optimizer is a :class:`.RoastAdamW`: refreshes the ranks, logs the share of updates.

    Pass it to the Trainer together with the optimizer::

        Trainer(..., optimizers=(RoastAdamW(model, lr=2e-5, weight_decay=0.01), None), callbacks=[RoastCallback()])

    or with ``optimizer_cls_and_kwargs=(RoastAdamW, {"model": model, "lr": 2e-5})``, which needs the model there: the
    Trainer's own groups do not say what is selective.

    With ``refresh_every=None`` every end of an epoch refreshes the ranks, before a checkpoint is written there.
    ``updated_share`` in the logs is the share of the trained elements that the steps since the last log updated, by the
    keep probabilities with which they drew: 1 before the first ranks. Training that ends without a single masked step
    says so. Reports to TensorBoard and the like are written before callbacks that the user adds; they show it if the
    callback comes first (``trainer.callback_handler.callbacks.insert(0, RoastCallback())``), as in RoastTrainer.

    Raises:
        ValueError: when training begins, if the optimizer is another.
    """

    def __init__(self) -> None:
        self._share = UpdatedShare()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the optimizer."""
        roast_optimizer(kwargs["optimizer"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember with what share the step draws."""
        self._share.before_step(roast_optimizer(kwargs["optimizer"]))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refresh at the last step of an epoch: a checkpoint of that step is written before the epoch ends."""
        if state.epoch is not None and state.epoch.is_integer():
            refresh_at_epoch_end(roast_optimizer(kwargs["optimizer"]))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refresh if the epoch ended before its last step, or has no known length."""
        refresh_at_epoch_end(roast_optimizer(kwargs["optimizer"]))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add ``updated_share`` to the logs of the training loss."""
        logs = kwargs["logs"]
        if "loss" in logs and (share := self._share.of_steps()) is not None:
            logs["updated_share"] = state.log_history[-1]["updated_share"] = share

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say if nothing was ever masked."""
        warn_if_never_masked(roast_optimizer(kwargs["optimizer"]))
