"""RoAST: an adversary in embedding space and selective training; and each of its two parts alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from roast_optim import AdversarialEmbedding, RoastAdamW, selective_param_groups
from roast_optim.options import DEFAULTS

from ..data import Task
from ..training import Method, Training

ROAST = "Kim et al., RoAST: Robustifying language models via adversarial perturbation with selective training, 2023"
PAPER_SELECTION = {"sentiment": {"alpha": 0.9, "beta": 10.0}, "entailment": {"alpha": 0.6, "beta": 1.0}}


@dataclass
class AdversarialOnly(Method):
    """The adversarial and the consistency loss with AdamW, everything updated ("AdvEmbed" in the paper's tables)."""

    paper = ROAST + ", section 3.1"

    step_size: float = 0.1
    consistency_weight: float = 0.01
    adversarial_weight: float = 1.0
    clean_weight: float = 1.0
    norm: str = "linf"
    embedding: str | None = None
    gradient: str = "exact"
    start_noise: float = 0.0
    adversary: AdversarialEmbedding | None = field(default=None, init=False, repr=False)

    def build(self, training: Training) -> Optimizer:
        if self.adversarial_weight or self.consistency_weight:  # else there is nothing for a second pass to add
            self.adversary = AdversarialEmbedding(
                training.model,
                step_size=self.step_size,
                consistency_weight=self.consistency_weight,
                adversarial_weight=self.adversarial_weight,
                clean_weight=self.clean_weight,
                norm=self.norm,
                embedding=self.embedding,
                gradient=self.gradient,
                start_noise=self.start_noise,
            )
        return super().build(training)

    def loss(self, training: Training, batch: dict[str, Tensor]) -> Tensor:
        if self.adversary is None:
            return super().loss(training, batch)
        loss: Tensor = self.adversary(**batch).loss
        return loss

    def after_training(self, training: Training) -> None:
        self.adversary = None  # its hook goes with it


@dataclass
class SelectiveOnly(Method):
    """RoastAdamW on the task loss alone."""

    paper = ROAST + ", section 3.2"

    alpha: float = DEFAULTS["alpha"]
    beta: float = DEFAULTS["beta"]
    selective: bool = DEFAULTS["selective"]
    importance: str = DEFAULTS["importance"]
    mask_schedule: str = DEFAULTS["mask_schedule"]
    rescale: bool = DEFAULTS["rescale"]
    backend: str = DEFAULTS["backend"]
    measure_first: bool = True  # whether one pass before training gives the first epoch masks

    @classmethod
    def for_task(cls, task: Task, **options: Any) -> SelectiveOnly:
        return cls(**{**PAPER_SELECTION.get(task.name, {}), **options})

    def build(self, training: Training) -> Optimizer:
        """RoastAdamW with the recipe's settings; ranks are recomputed once per epoch."""
        recipe = training.recipe
        groups = selective_param_groups(training.model, weight_decay=recipe.weight_decay)
        if not self.selective:
            groups = [{**group, "selective": False} for group in groups]
        return RoastAdamW(
            groups,
            lr=recipe.learning_rate,
            betas=recipe.betas,
            eps=recipe.eps,
            alpha=self.alpha,
            beta=self.beta,
            refresh_every=len(training.batches) if self.selective else None,
            importance=self.importance,
            mask_schedule=self.mask_schedule,
            rescale=self.rescale,
            backend=self.backend,
            seed=training.seed,
        )

    def before_training(self, training: Training) -> None:
        if self.selective and self.measure_first:
            measure_importance(training)
        super().before_training(training)


@dataclass
class Roast(AdversarialOnly, SelectiveOnly):
    """The whole method: the adversary's objective with the selective optimizer."""

    paper = ROAST


def measure_importance(training: Training) -> None:
    """One pass over the training rows with the task loss and no update, to have ranks before the first step.

    The paper's text has no masks in the first epoch; its authors' code makes this pass.
    """
    optimizer = training.optimizer
    assert isinstance(optimizer, RoastAdamW)
    training.observer.stage("importance", len(training.batches))
    with optimizer.measure_importance():
        for batch in training.batches.epoch(0):
            loss = training.task_loss(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            training.observer.advance(loss.item())
    optimizer.refresh()
