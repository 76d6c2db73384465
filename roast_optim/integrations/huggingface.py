"""RoAST in the Trainer of Hugging Face transformers: a Trainer, its options, and a callback for other Trainers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..adversarial import AdversarialEmbedding
from ..embedding_block import unwrapped
from ..losses import IGNORED_LABEL
from ..model_call import ModelCall
from ..optimizer import RoastAdamW
from ..options import OPTIONS, config_field
from ..param_groups import selective_param_groups
from .callbacks import UpdatedShare, refresh_at_epoch_end, roast_optimizer

_ADAMW_NAMES = ("adamw_torch", "adamw_torch_fused")  # what TrainingArguments.optim says if nobody sets it


@dataclass
class RoastConfig:
    """Options beside ``TrainingArguments``, from which learning rate, betas, eps, weight decay and seed are taken.

    Can be read from the command line together with them: ``HfArgumentParser((TrainingArguments, RoastConfig))``. See
    :class:`.RoastAdamW` and :class:`.AdversarialEmbedding` for what each option does; values out of range raise there.
    """

    alpha: float = config_field("alpha")
    beta: float = config_field("beta")
    refresh_every: int | None = config_field("refresh_every", "The Trainer does so after every epoch.")
    mask_schedule: str = config_field("mask_schedule")
    rescale: bool = config_field("rescale")
    selective: bool = config_field("selective", "Of the transformer blocks; all else is always updated.")
    importance: str = config_field("importance")
    importance_every: int = config_field("importance_every")
    always_update: list[str] | None = field(
        default=None, metadata={"help": "Regular expressions of names that are never selective."}
    )
    importance_dtype: str = config_field("importance_dtype", 'Its name, as "bfloat16".', default="float32")
    state_dtype: str | None = config_field("state_dtype", 'Its name, as "float32".')
    stochastic_rounding: bool = config_field("stochastic_rounding")
    backend: str = config_field("backend")
    step_size: float = field(default=0.1, metadata={"help": "Length of the perturbation of each token."})
    consistency_weight: float = field(default=0.01, metadata={"help": "Weight of the consistency loss."})
    adversarial_weight: float = field(
        default=1.0, metadata={"help": "Weight of the task loss of the adversarial pass."}
    )
    clean_weight: float = field(default=1.0, metadata={"help": "Weight of the task loss of the clean pass."})
    norm: str = field(default="linf", metadata={"help": 'In which step_size is measured: "linf", "sign" or "l2".'})
    embedding: str | None = field(
        default=None, metadata={"help": '"word": perturb the word embeddings, not the whole embedding block.'}
    )
    gradient: str = field(
        default="exact",
        metadata={"help": '"exact", or "fast": hold the clean prediction constant, and save a backward.'},
    )

    def make_optimizer(self, model: nn.Module, args: TrainingArguments) -> RoastAdamW:
        """The optimizer for the trainable parameters of ``model``.

        Raises:
            ValueError: an option is out of range, or the model has no transformer blocks.
        """
        groups = selective_param_groups(model, args.weight_decay, self.always_update)
        for group in groups:
            group["selective"] = group["selective"] and self.selective
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name in OPTIONS}
        of_trainer = {
            "lr": args.learning_rate,
            "betas": (args.adam_beta1, args.adam_beta2),
            "eps": args.adam_epsilon,
            "seed": args.seed,
        }
        dtypes = {name: self._dtype(name) for name in ("importance_dtype", "state_dtype")}
        return RoastAdamW(groups, **{**own, **of_trainer, **dtypes})

    def _dtype(self, option: str) -> torch.dtype | None:
        name = getattr(self, option)
        dtype = getattr(torch, name, None) if name else None
        if name and not isinstance(dtype, torch.dtype):
            raise ValueError(f"{option}={name!r} is not the name of a torch dtype, such as 'float32'")
        return dtype

    def make_adversary(self, model: nn.Module) -> _TrainerAdversary:
        """The adversary of ``model``, which must not be wrapped, sharded or compiled yet.

        Raises:
            ValueError: an option is out of range, or the model has no embeddings.
        """
        names = (
            "step_size", "consistency_weight", "adversarial_weight", "clean_weight", "norm", "embedding", "gradient",
        )  # fmt: skip
        return _TrainerAdversary(model, **{name: getattr(self, name) for name in names})


class RoastCallback(TrainerCallback):
    """For any Trainer whose optimizer is a :class:`.RoastAdamW`: refreshes the ranks, logs the share of updates.

    Pass it to the Trainer together with the optimizer::

        Trainer(..., optimizers=(RoastAdamW(selective_param_groups(model, 0.01), lr=2e-5), None),
                callbacks=[RoastCallback()])

    Every end of an epoch refreshes the ranks, before a checkpoint is written there, unless the optimizer does so itself
    (``refresh_every``). ``updated_share`` in the logs is the expected share of the trained elements that the next step
    updates. Reports to TensorBoard and the like are written before callbacks that the user adds; they show it if the
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
        if "loss" in logs:
            logs["updated_share"] = state.log_history[-1]["updated_share"] = self._share.of(
                roast_optimizer(kwargs["optimizer"])
            )


class _TrainerAdversary(AdversarialEmbedding):
    """Knows what became of the Trainer's ``num_items_in_batch``, the items of all accumulated micro-batches.

    Attributes:
        given_divisor: what ``loss_fn`` divides its loss by; None: it averages.
        loss_is_divided: whether the loss of the last call was divided by ``num_items_in_batch``.
    """

    given_divisor: Any = None
    loss_is_divided: bool = False

    def _labels_are_shifted(self, call: ModelCall) -> bool:
        return call.labels_are_shifted  # whoever computes the loss, the Trainer's labels are the model's

    def _differentiate(self, result: Any, call: Any, held: list[Tensor]) -> list[Tensor | None]:
        gradients = super()._differentiate(result, call, held)
        if self.loss_fn is not None:
            result.loss_divisor = self.given_divisor
        self.loss_is_divided = result.loss_divisor is not None
        return gradients


class RoastTrainer(Trainer):
    """A Trainer that trains with RoAST: :class:`.AdversarialEmbedding` computes its loss, :class:`.RoastAdamW` steps.

    Use it like the Trainer. Evaluation is the Trainer's own. The ranks are refreshed at the end of every epoch, or
    every ``roast.refresh_every`` optimizer steps. Resumed from a checkpoint, training continues bit for bit.

    The logs of the training loss gain ``task_loss``, ``adversarial_loss`` and ``consistency_loss`` (without their
    weights; ``loss`` is their weighted sum), ``updated_share`` (see :class:`RoastCallback`), and, if there were any,
    ``nonfinite_samples``, whose embeddings could not be perturbed (so far, in this process).

    Args:
        *args: of ``transformers.Trainer``.
        roast: the options; None: the defaults.
        **kwargs: of ``transformers.Trainer``. An optimizer passed in ``optimizers`` must be a RoastAdamW; then the
            options of ``roast`` for the optimizer have no effect.

    Attributes:
        adversary: computes the loss; made when training begins.

    Raises:
        ValueError: another optimizer is asked for, or a way of training that cannot work: DataParallel (launch with
            ``torchrun``), DeepSpeed or FSDP version 1, which flatten the parameters (use FSDP version 2).
    """

    def __init__(self, *args: Any, roast: RoastConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.roast = roast if roast is not None else RoastConfig()
        self.adversary: _TrainerAdversary | None = None
        self._loss_sums: dict[str, Tensor] = {}
        self._first_summed_step = 0
        self._check_arguments()
        if not any(isinstance(callback, RoastCallback) for callback in self.callback_handler.callbacks):
            self.callback_handler.callbacks.insert(0, RoastCallback())  # before those that report the logs

    def _check_arguments(self) -> None:
        if self.optimizer is not None:
            roast_optimizer(self.optimizer)
        if self.optimizer_cls_and_kwargs is not None:
            raise ValueError(
                "optimizer_cls_and_kwargs: RoastTrainer makes its own optimizer; pass roast=RoastConfig(...)"
            )
        if self.args.optim not in _ADAMW_NAMES:
            raise ValueError(f"optim={self.args.optim!r}: RoastTrainer makes its own optimizer; leave optim out")
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
            self.optimizer = self.roast.make_optimizer(model, self.args)
        if self.adversary is None or unwrapped(self.adversary.model) is not unwrapped(model):
            self.adversary = self.roast.make_adversary(model)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective in training mode, otherwise the Trainer's loss."""
        if self.adversary is None or not (model.training and torch.is_grad_enabled()):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.adversary.model = model
        if self.compute_loss_func is None and self.label_smoother is None:
            objective: Any = self.adversary
            loss, outputs = super().compute_loss(objective, inputs, True, num_items_in_batch)
            if num_items_in_batch is not None and not self.adversary.loss_is_divided:
                # Classifiers of transformers take num_items_in_batch and average over the micro-batch all the same.
                loss = loss * (self._items(inputs["labels"]) / num_items_in_batch)
        else:
            self.adversary.loss_fn = partial(self._given_loss, num_items_in_batch=num_items_in_batch)
            self.adversary.given_divisor = num_items_in_batch
            outputs = self.adversary(**inputs)
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                loss = loss * (self.accelerator.num_processes // self.get_tp_size())
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
        predicts_next = model.can_generate() and not model.config.is_encoder_decoder
        return self.label_smoother(outputs, labels, shift_labels=predicts_next, num_items_in_batch=num_items_in_batch)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The Trainer's step; keeps the parts of the loss for the logs."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        assert self.adversary is not None
        weights = {
            "task": self.roast.clean_weight,
            "adversarial": self.roast.adversarial_weight,
            "consistency": self.roast.consistency_weight,
        }
        parts = {name: part.float() for name, part in self.adversary.last_losses.items()}
        # The Trainer has scaled the objective for accumulation and processes, each of its versions in its own way.
        objective = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        scale = torch.where(objective == 0, 1.0, loss / objective)
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
