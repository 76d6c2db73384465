"""RoAST in the Trainer of Hugging Face transformers: a Trainer, its options, and a callback for other Trainers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..adversarial import AdversarialEmbedding
from ..losses import IGNORED_LABEL
from ..model_call import predicts_next_label
from ..model_output import TaskLoss
from ..model_wrappers import unwrapped
from ..optimizer import RoastAdamW
from .callbacks import roast_optimizer
from .randomness import same_random_numbers_after
from .trainer_callback import RoastCallback
from .trainer_checkpoint import PlainTrainerCheckpoint, match_scheduler
from .trainer_config import RoastConfig

__all__ = ["RoastCallback", "RoastConfig", "RoastTrainer"]

_ADVERSARY_STATE = "AdversarialEmbedding"  # its place in a Trainer's state
_ADAMW_NAMES = ("adamw_torch", "adamw_torch_fused")  # what TrainingArguments.optim says if nobody sets it


class _Beginning(TrainerCallback):
    """What a RoastTrainer does before the first step, when all is there, and what it saves after each."""

    def __init__(self, trainer: RoastTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Match a scheduler that came from a plain Trainer, go on with the adversary, and measure importance."""
        match_scheduler(kwargs["lr_scheduler"], kwargs["optimizer"])
        if self._trainer.adversary is not None:
            kept: Any = state.stateful_callbacks
            saved = kept.get(_ADVERSARY_STATE) if state.global_step else None
            self._trainer.adversary.load_state_dict(saved["attributes"] if saved else {"calls": 0})
        if self._trainer.roast.measure_first and state.global_step == 0:
            self._trainer.measure_importance()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the adversary's state where the Trainer saves that of callbacks."""
        if self._trainer.adversary is not None:
            kept: Any = state.stateful_callbacks
            kept[_ADVERSARY_STATE] = {"args": {}, "attributes": self._trainer.adversary.state_dict()}


def _is_roast(optimizer: object) -> bool:
    try:
        roast_optimizer(optimizer)
    except ValueError:
        return False
    return True


class RoastTrainer(Trainer):
    """A Trainer that trains with RoAST: :class:`.AdversarialEmbedding` computes its loss, :class:`.RoastAdamW` steps.

    Use it like the Trainer. Evaluation is the Trainer's own. The ranks are refreshed as ``roast.refresh_every`` says;
    with None, at the end of every epoch. Resumed from a checkpoint, training continues bit for bit. From one of a plain
    Trainer it goes on with AdamW's moments, matched by the names of the parameters.

    The logs of the training loss gain ``task_loss``, ``adversarial_loss`` and ``consistency_loss`` (without their
    weights; ``loss`` is their weighted sum), ``updated_share`` (see :class:`RoastCallback`), and, if there were any,
    ``nonfinite_samples``, whose embeddings could not be perturbed (so far, in this process).

    Args:
        *args: of ``transformers.Trainer``.
        roast: the options, as a RoastConfig or a dictionary of its fields; None: the defaults.
        **kwargs: of ``transformers.Trainer``. With an optimizer passed in ``optimizers``, which may be any, the options
            of ``roast`` for the optimizer have no effect: with AdamW the adversary works alone.

    Attributes:
        adversary: computes the loss; made when training begins.

    Raises:
        ValueError: another optimizer is asked for in another way, or training in a way that cannot work: DataParallel
            (launch with ``torchrun``), DeepSpeed or FSDP version 1, which flatten the parameters (use FSDP version 2).
    """

    def __init__(self, *args: Any, roast: RoastConfig | Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.roast = RoastConfig.of(roast)
        self._measuring = False
        self.adversary: AdversarialEmbedding | None = None
        self._objective: Tensor | None = None
        self._loss_sums: dict[str, Tensor] = {}
        self._first_summed_step = 0
        self._check_arguments()
        has_callback = any(isinstance(callback, RoastCallback) for callback in self.callback_handler.callbacks)
        if not has_callback and (self.optimizer is None or _is_roast(self.optimizer)):
            self.callback_handler.callbacks.insert(0, RoastCallback())  # before those that report the logs
        self.add_callback(_Beginning(self))

    def _check_arguments(self) -> None:
        if self.optimizer_cls_and_kwargs is not None and self.optimizer_cls_and_kwargs[0] is not RoastAdamW:
            raise ValueError(
                "optimizer_cls_and_kwargs: RoastTrainer makes its own optimizer; pass roast=RoastConfig(...)"
            )
        if self.args.optim not in _ADAMW_NAMES and self.optimizer is None:
            raise ValueError(
                f"optim={self.args.optim!r}: RoastTrainer makes its own optimizer; leave optim out, or pass yours in "
                "optimizers="
            )
        if self.args.n_gpu > 1:
            raise ValueError("RoastTrainer does not support DataParallel: launch one process per GPU with torchrun")
        fsdp_version = getattr(self.accelerator.state.fsdp_plugin, "fsdp_version", 2) if self.is_fsdp_enabled else 2
        if self.is_deepspeed_enabled or fsdp_version != 2:
            kind = "DeepSpeed" if self.is_deepspeed_enabled else f"fsdp_version={fsdp_version}"
            raise ValueError(f"{kind} flattens the parameters; use fsdp with fsdp_config={{'fsdp_version': 2}}")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's training; what an earlier one has not logged is forgotten."""
        self._loss_sums = {}
        return super().train(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Make the optimizer, unless there is one, and the adversary; the model is not wrapped or compiled yet."""
        model = self.model if model is None else model
        assert model is not None
        if self.optimizer is None:
            options = dict(self.optimizer_cls_and_kwargs[1]) if self.optimizer_cls_and_kwargs is not None else {}
            self.optimizer = self.roast.make_optimizer(options.pop("model", model), self.args, **options)
            plain = PlainTrainerCheckpoint(model, self.get_decay_parameter_names(model), self.optimizer)
            self.optimizer.register_load_state_dict_pre_hook(plain.matched)
        if self.adversary is None or unwrapped(self.adversary.model) is not unwrapped(model):
            self.adversary = self.roast.make_adversary(model)
        return self.optimizer

    def measure_importance(self) -> None:
        """One pass over the training data with the plain loss, in which nothing is updated, and a refresh.

        The gradients are those that a step would see: accumulated, unscaled and clipped. Not more steps than training
        takes. Global random numbers, and so the order of the data, are afterwards as they were.
        """
        stepping: Any = self.optimizer  # within Accelerate's wrapper, which knows the loss scale
        model, roast, accumulation = (
            self.model_wrapped,
            roast_optimizer(stepping),
            self.args.gradient_accumulation_steps,
        )
        self._measuring = True
        try:
            with same_random_numbers_after(self.args.device), roast.measure_importance():
                batches = iter(self.get_train_dataloader())
                for _ in range(self.state.max_steps):
                    micro_batches, items = self.get_batch_samples(batches, accumulation, self.args.device)
                    if not micro_batches:
                        break
                    self.current_gradient_accumulation_steps = len(micro_batches)
                    for inputs in micro_batches:
                        super().training_step(model, inputs, items)
                    if self.args.max_grad_norm > 0:
                        self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
                    stepping.step()
                    model.zero_grad()
        finally:
            self._measuring = False
        roast.refresh()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective in training mode, otherwise the Trainer's loss."""
        if self.adversary is None or self._measuring or not (model.training and torch.is_grad_enabled()):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.adversary.model = model
        if self.compute_loss_func is None and self.label_smoother is None:
            self.adversary.loss_fn = None
            objective: Any = self.adversary
            loss, outputs = super().compute_loss(objective, inputs, True, num_items_in_batch)
            if num_items_in_batch is not None and self.adversary.loss_divisor is None:
                # Classifiers of transformers take num_items_in_batch and average over the micro-batch all the same.
                loss = loss * (self._items(inputs["labels"]) / num_items_in_batch)
        else:
            self.adversary.loss_fn = TaskLoss(
                partial(self._given_loss, num_items_in_batch=num_items_in_batch),
                divisor=num_items_in_batch,
                labels_are_shifted=True,  # whoever computes the loss, the Trainer's labels are the model's
            )
            outputs = self.adversary(**inputs)
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        # Not what is in the outputs: the Trainer may have multiplied that by the number of processes, in place.
        weights = (self.adversary.clean_weight, self.adversary.adversarial_weight, self.adversary.consistency_weight)
        parts = (self.adversary.last_losses[name].float() for name in ("task", "adversarial", "consistency"))
        self._objective = torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum()
        return (loss, outputs) if return_outputs else loss

    def _items(self, labels: Tensor) -> Tensor:
        """How many labels the Trainer counts in ``num_items_in_batch``."""
        shifted = getattr(self, "_loss_shifts_labels", False)
        return (labels[..., 1:] if shifted else labels).ne(IGNORED_LABEL).sum()

    def _given_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Any:
        """The loss of ``compute_loss_func`` or ``label_smoothing_factor``, as the Trainer computes it."""
        if self.compute_loss_func is not None:
            return self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
        assert self.label_smoother is not None
        model: Any = self.accelerator.unwrap_model(self.model)
        return self.label_smoother(
            outputs, labels, shift_labels=predicts_next_label(model), num_items_in_batch=num_items_in_batch
        )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The Trainer's step; keeps the parts of the loss for the logs."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.adversary is None or self._objective is None:  # a subclass computes its loss in another way
            return loss
        parts = {name: part.float() for name, part in self.adversary.last_losses.items()}
        # The objective was scaled for items, accumulation and processes, in each version of the Trainer differently.
        scale = torch.where(self._objective == 0, 1.0, loss / self._objective)
        if not self._loss_sums:
            self._first_summed_step = self.state.global_step
        for name, part in parts.items():
            scaled = torch.where(loss.isfinite(), part * scale, 0.0)
            self._loss_sums[name] = self._loss_sums.get(name, 0.0) + scaled
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the parts of the training loss where it is logged."""
        if "loss" in logs and self._loss_sums:
            steps = self.state.global_step - self._first_summed_step
            for name, total in self._loss_sums.items():
                logs[f"{name}_loss"] = self.accelerator.gather(total).mean().item() / steps
            self._loss_sums = {}
            if self.adversary is not None and self.adversary.nonfinite_samples:
                logs["nonfinite_samples"] = self.adversary.nonfinite_samples
        super().log(logs, *args, **kwargs)
