"""The candidates for a RoAST that pays, as settings of one method; PROTOCOL.md says which is which."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from torch.optim import Optimizer
from transformers import PreTrainedModel

from roast_optim import symmetric_kl

from ..options import option
from ..training import Method, Training
from .lp_ft import fit_head
from .perturbed_block import PerturbedBlock, relative_step
from .ranked_updates import FIRST_RANKS, MOST_BETWEEN, RankedUpdates

HEAD_LEARNING_RATE = 1e-3
LONGEST = 1.0  # share of an embedding's length beyond which a held step does not grow


@dataclass
class Candidate(Method):
    """AdamW with any of: an adversary that is scaled, ramped, held and bounded; a teacher; selection; a pull back.

    The objective is ``L_clean + weight min(1, L_clean / L_adv) L_adv + consistency_weight KL + teacher_weight KL_t``.

    Args:
        step_size: length of the perturbation as a share of each token's own embedding length; 0: no adversary.
        ramp_begin, ramp_end: shares of the training between which the step grows from zero.
        hold: share of the rows got right that the step is to flip, to which it is adapted after the ramp; 0: constant.
        hold_rate: by how much the step's logarithm moves per step and unit of deviation.
        bounded: whether the adversarial loss is scaled down to the clean one where it is larger.
        adversarial_weight: of the task loss on perturbed embeddings; 0: no labels there.
        consistency: "symmetric" KL, or "forward": KL(clean || perturbed) with the clean prediction held constant.
        share: of the rows of each batch that are perturbed.
        teacher_weight: of the symmetric KL to an average of the model's own past.
        selection: "none"; "gradient": the mask before the moments; "update": after them; "soft": the update times p.
        importance: see :class:`RankedUpdates`.
        refresh_every: steps between ranks; 0: after 32, 64, ... steps, as refresh_every="auto".
        head_epochs: epochs in which the classifier alone is fitted first.
        measure_batches: batches whose importance gives ranks before the first step.
        pull: strength of the decay towards the pre-trained weights of the blocks; `pull_by` "uniform" or "rank".
    """

    paper = "candidates built on Kim et al., RoAST, 2023"

    step_size: float = option(0.0)
    ramp_begin: float = option(0.0, most=1)
    ramp_end: float = option(0.0, most=1)
    hold: float = option(0.0, most=1)
    hold_rate: float = option(0.05)
    bounded: bool = False
    adversarial_weight: float = option(1.0)
    consistency_weight: float = option(0.01)
    consistency: str = "symmetric"
    share: float = option(1.0, most=1)
    teacher_weight: float = option(0.0)
    teacher_momentum: float = option(0.99, most=1)
    later_momentum: float = option(0.999, most=1)
    selection: str = "none"
    alpha: float = option(0.6)
    beta: float = option(1.0)
    importance: str = "gradient"
    importance_decay: float = option(0.0, most=1)
    refresh_every: int = option(0)
    head_epochs: int = option(0)
    measure_batches: int = option(0)
    pull: float = option(0.0)
    pull_by: str = "uniform"

    block: PerturbedBlock | None = field(default=None, init=False, repr=False)
    ranked: RankedUpdates | None = field(default=None, init=False, repr=False)
    teacher: PreTrainedModel | None = field(default=None, init=False, repr=False)
    draws: torch.Generator = field(default_factory=torch.Generator, init=False, repr=False)
    flips: list[float] = field(default_factory=list, init=False, repr=False)
    length: float = field(default=0.0, init=False, repr=False)

    def build(self, training: Training) -> Optimizer:
        optimizer = super().build(training)
        self.length = self.step_size
        self.draws.manual_seed(training.seed)
        if self.step_size:
            self.block = PerturbedBlock(training.model)
        if self.needs_ranks or self.pull:
            self.ranked = RankedUpdates(
                optimizer, alpha=self.alpha, beta=self.beta, importance=self.importance,
                importance_decay=self.importance_decay, pull=self.pull, seed=training.seed,
            )  # fmt: skip
        if self.selection in ("update", "soft"):
            optimizer.register_step_pre_hook(self.before_step)
        return optimizer

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.ranked is not None and self.ranked.ready:
            self.ranked.remember()

    @property
    def needs_ranks(self) -> bool:
        return self.selection != "none" or (self.pull > 0 and self.pull_by == "rank")

    @property
    def selects(self) -> bool:
        """Whether there are masks in this step."""
        return self.selection != "none" and self.ranked is not None and self.ranked.ready

    def before_training(self, training: Training) -> None:
        if self.head_epochs:
            fit_head(training, self.head_epochs, HEAD_LEARNING_RATE)
        if self.measure_batches:
            self.measure(training)
        if self.teacher_weight:
            self.teacher = copy.deepcopy(training.model).eval().requires_grad_(False)
            for module in self.teacher.modules():
                module._forward_hooks.clear()  # that of the block belongs to the model

    def measure(self, training: Training) -> None:
        """Ranks before the first step."""
        assert self.ranked is not None
        training.observer.stage("importance", self.measure_batches)
        for _, batch in zip(range(self.measure_batches), training.batches.epoch(0), strict=False):
            loss = training.task_loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            self.ranked.accumulate()
            training.optimizer.zero_grad()
            training.observer.advance(loss.item())
        self.ranked.refresh()

    # ------------------------------------------------------------------------------------------------------- objective

    def loss(self, training: Training, batch: dict[str, Tensor]) -> Tensor:
        height = self.height(training)
        if self.block is None or (height == 0 and self.importance != "agreement"):
            output = training.model(**batch)
            loss: Tensor = output.loss
        else:
            output, loss = self.with_adversary(training, batch, height)
        if self.teacher is not None:
            with torch.no_grad():
                past = self.teacher(**batch).logits
            loss = loss + self.teacher_weight * symmetric_kl(output.logits, past)
        return loss

    def height(self, training: Training) -> float:
        """Share of the step's length that is reached: 0 before the ramp, 1 after it."""
        done = training.step / training.total_steps
        if self.ramp_end <= self.ramp_begin:
            return float(done >= self.ramp_begin)
        return min(1.0, max(0.0, (done - self.ramp_begin) / (self.ramp_end - self.ramp_begin)))

    def with_adversary(self, training: Training, batch: dict[str, Tensor], height: float) -> tuple[Any, Tensor]:
        """The clean pass's output and the objective."""
        assert self.block is not None
        clean, embeddings, leaf = self.block.clean(batch)
        wanted = [leaf]
        if self.importance == "agreement" and self.ranked is not None:
            wanted += [each.param for each in self.ranked.tensors if each.param.requires_grad]
        with torch.autocast(leaf.device.type, enabled=False):
            gradient, *clean_gradients = torch.autograd.grad(clean.loss, wanted, retain_graph=True, allow_unused=True)
        if clean_gradients:
            assert self.ranked is not None
            for each, found in zip(self.ranked.tensors, clean_gradients, strict=True):
                each.clean_gradient = found
        rows = self.perturbed_rows(len(embeddings))
        step = relative_step(embeddings, gradient, batch["attention_mask"], height * self.length)
        some = {name: values[rows] for name, values in batch.items()}
        perturbed = self.block.replaced(some, (embeddings + step)[rows])
        part = len(rows) / len(embeddings)
        loss: Tensor = clean.loss
        if self.adversarial_weight:
            bound = (clean.loss / perturbed.loss).detach().clamp(max=1.0) if self.bounded else 1.0
            loss = loss + part * self.adversarial_weight * bound * perturbed.loss
        if self.consistency_weight:
            loss = loss + part * self.consistency_weight * self.divergence(clean.logits[rows], perturbed.logits)
        self.watch(clean.logits[rows], perturbed.logits, some["labels"], height)
        return clean, loss

    def perturbed_rows(self, rows: int) -> Tensor:
        """The numbers of the rows that are perturbed, in order."""
        if self.share == 1.0:
            return torch.arange(rows)
        count = max(1, round(self.share * rows))
        return torch.randperm(rows, generator=self.draws)[:count].sort().values

    def divergence(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        if self.consistency == "symmetric":
            return symmetric_kl(clean, perturbed)
        p, q = log_softmax(clean.detach().float(), -1), log_softmax(perturbed.float(), -1)
        return kl_div(q, p, log_target=True, reduction="batchmean")

    def watch(self, clean: Tensor, perturbed: Tensor, labels: Tensor, height: float) -> None:
        """Note which share of the rows got right was flipped, and adapt the step to it where it is held."""
        right = clean.argmax(-1) == labels
        if not right.any():
            return
        flipped = float((perturbed.argmax(-1) != labels)[right].float().mean())
        self.flips.append(flipped)
        if self.hold and height == 1:
            self.length = min(LONGEST, self.length * math.exp(self.hold_rate * (self.hold - flipped)))

    # -------------------------------------------------------------------------------------------------------- optimizer

    def after_backward(self, training: Training) -> None:
        if self.ranked is None or not self.needs_ranks:
            return
        self.ranked.accumulate()
        if self.selection == "gradient" and self.selects:
            self.ranked.mask_gradients()

    def after_step(self, training: Training) -> None:
        learning_rate = training.optimizer.param_groups[0]["lr"]
        if self.ranked is not None:
            if self.selection in ("update", "soft") and self.selects:
                self.ranked.select_updates(learning_rate, soft=self.selection == "soft")
            if self.pull:
                self.ranked.pull_back(min(1.0, learning_rate * self.pull), by_rank=self.pull_by == "rank")
            if self.needs_ranks and self.is_due(training.step):
                self.ranked.refresh()
        if self.teacher is not None:
            early = training.step <= 0.1 * training.total_steps
            follow(self.teacher, training.model, self.teacher_momentum if early else self.later_momentum)

    def is_due(self, step: int) -> bool:
        """Whether ranks are renewed after this step."""
        if self.refresh_every:
            return step % self.refresh_every == 0
        doubled = step >= FIRST_RANKS and step & (step - 1) == 0
        return doubled if step <= MOST_BETWEEN else step % MOST_BETWEEN == 0

    def after_training(self, training: Training) -> None:
        if self.block is not None:
            self.block.remove()
        self.block = self.ranked = self.teacher = None

    def facts(self) -> dict[str, Any]:
        if not self.flips:
            return {}
        last = self.flips[-len(self.flips) // 4 :]
        return {"last_step_size": self.length, "flipped_share": sum(last) / len(last)}


@torch.no_grad()
def follow(average: PreTrainedModel, model: PreTrainedModel, momentum: float) -> None:
    """Move an average of a model a little towards it."""
    for kept, current in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(current, 1 - momentum)
