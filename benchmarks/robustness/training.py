"""The one training loop. A method supplies optimizer and objective; everything else is the same for all methods."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import torch
from datasets import Dataset
from torch import Tensor
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from roast_optim import selective_param_groups
from roast_optim.evaluation.classifier import Classifier
from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.progress import SILENT, Observer

from .data import Task, texts_of
from .errors import DivergedError
from .models import TrainingBatches
from .options import check_options, is_number, option

M = TypeVar("M", bound="Method")


PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """What all methods share. The defaults are the paper's for RoBERTa-large.

    Raises:
        UserError: a value is of another type or out of range.
    """

    epochs: int = option(10, least=1)
    batch_size: int = option(16, least=1)
    learning_rate: float = option(1e-5)
    weight_decay: float = option(0.01)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = option(1e-6)
    warmup_share: float = option(0.06, most=1)
    precision: str = "float32"  # of the matrix products in training; the weights are float32 anyhow

    def __post_init__(self) -> None:
        check_options(self)
        if self.precision not in PRECISIONS:
            raise UserError(f"precision {self.precision!r} is unknown; known: {', '.join(PRECISIONS)}")
        if len(self.betas) != 2 or not all(is_number(beta) and 0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas is {self.betas!r}; give two numbers from 0 to less than 1, as [0.9, 0.98]")


def in_precision(precision: str, device: torch.device) -> torch.autocast:
    """The context of forward passes whose matrix products have this precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@dataclass
class Training:
    """One training in progress, as a method sees it. `step` counts the steps taken."""

    model: PreTrainedModel
    recipe: Recipe
    batches: TrainingBatches
    seed: int
    observer: Observer
    step: int = 0
    optimizer: Optimizer = field(init=False)

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * len(self.batches)

    def autocast(self) -> torch.autocast:
        """The context of a forward pass in the recipe's precision. It must not outlive a step: it caches weights."""
        return in_precision(self.recipe.precision, self.model.device)

    def task_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The model's own loss of a batch, a scalar with a gradient."""
        with self.autocast():
            loss: Tensor = self.model(**batch).loss
        return loss


class Method:
    """A way to fine-tune. As it stands it is plain fine-tuning; a subclass overrides the parts in which it differs.

    Subclasses are dataclasses whose fields are the method's options. An object serves one training: it may keep state.
    """

    paper: ClassVar[str]

    @classmethod
    def for_task(cls: type[M], task: Task, **options: Any) -> M:
        """The method with its paper's settings for a task, where they depend on it."""
        return cls(**options)

    def options(self) -> dict[str, Any]:
        """The options by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}  # type: ignore[arg-type]

    def facts(self) -> dict[str, Any]:
        """What the method has to tell of its training, for the record; JSON values."""
        return {}

    def build(self, training: Training) -> Optimizer:
        """Make the optimizer, and whatever else the method trains with.

        Raises:
            ValueError, TypeError: an option is out of range.
        """
        recipe = training.recipe
        groups = selective_param_groups(training.model, weight_decay=recipe.weight_decay)
        # PyTorch's fastest: what a careful user compares costs with. Its rounding is not the other implementations'.
        return AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, fused=True)

    def before_training(self, training: Training) -> None:
        """Called once, after `build` and in training mode. Its time counts."""

    def loss(self, training: Training, batch: dict[str, Tensor]) -> Tensor:
        """The objective of a batch, a scalar with a gradient. It is called under `training.autocast()`."""
        return training.task_loss(batch)

    def after_backward(self, training: Training) -> None:
        """Called before each step of the optimizer, when the gradients are there: to change them."""

    def after_step(self, training: Training) -> None:
        """Called after each step of the optimizer, before the learning rate changes."""

    def after_training(self, training: Training) -> None:
        """Called once, also when training stops with an error: to leave the model as it was built."""


def train(
    classifier: Classifier,
    method: Method,
    rows: Dataset,
    recipe: Recipe,
    seed: int,
    observer: Observer = SILENT,
    after_epoch: Callable[[int], None] = lambda epochs: None,
) -> float:
    """Fine-tune the model in place: linear warm-up over the first 6% of all steps, then linear decay to zero.

    Args:
        rows: the task's text columns and `label`.
        seed: of the order of the rows, dropout and the method's own draws.
        observer: told of every step and its loss.
        after_epoch: called with the number of epochs done, also before the first; its time does not count.

    Returns:
        Seconds, without tokenization.

    Raises:
        UserError: an option of the method is out of range.
        DivergedError: the loss is not finite.
    """
    batches = TrainingBatches(classifier, texts_of(rows), rows["label"][:], recipe.batch_size, seed)
    training = Training(classifier.model, recipe, batches, seed, observer)
    torch.manual_seed(seed)
    started = time.perf_counter()
    training.model.train()
    try:
        training.optimizer = method.build(training)
    except (TypeError, ValueError) as error:
        raise UserError(f"method {type(method).__name__} with {method.options()}: {error}") from error
    schedule = get_linear_schedule_with_warmup(
        training.optimizer, math.ceil(recipe.warmup_share * training.total_steps), training.total_steps
    )
    try:
        method.before_training(training)
        watched = elapsed(after_epoch, 0)
        observer.stage("training", training.total_steps)
        for epoch in range(recipe.epochs):
            for batch in batches.epoch(epoch):
                with training.autocast():
                    loss = method.loss(training, batch)
                if not math.isfinite(value := loss.item()):
                    raise DivergedError(f"the loss is {value} at step {training.step}; give a smaller learning rate")
                loss.backward()
                method.after_backward(training)
                training.optimizer.step()
                training.step += 1
                method.after_step(training)
                schedule.step()
                training.optimizer.zero_grad()
                observer.advance(value)
            watched += elapsed(after_epoch, epoch + 1)
    finally:
        method.after_training(training)
    return time.perf_counter() - started - watched


def elapsed(callback: Callable[[int], None], number: int) -> float:
    """Call it, and return the seconds that it took."""
    started = time.perf_counter()
    callback(number)
    return time.perf_counter() - started
