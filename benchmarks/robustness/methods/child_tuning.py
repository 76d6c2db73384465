"""ChildTuning: update a part of the network, drawn at random at every step (F) or chosen once by importance (D)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..options import option
from ..training import Method, Training

PAPER = "Xu et al., Raise a child in large language model: towards effective and generalizable fine-tuning, EMNLP 2021"


@dataclass
class ChildTuningFree(Method):
    """ChildTuning-F: each pre-trained element is updated with one probability, its gradient then divided by it."""

    paper = PAPER + ", section 2.2"

    keep_probability: float = option(0.3, least=0.001, most=1)
    generator: torch.Generator = field(default_factory=torch.Generator, init=False, repr=False)

    def before_training(self, training: Training) -> None:
        self.generator = torch.Generator(training.model.device).manual_seed(training.seed)

    def after_backward(self, training: Training) -> None:
        for param in training.model.base_model.parameters():
            if param.grad is not None:
                kept = torch.rand(param.shape, generator=self.generator, device=param.device) < self.keep_probability
                param.grad.mul_(kept).div_(self.keep_probability)


@dataclass
class ChildTuningDriven(Method):
    """ChildTuning-D: only the pre-trained elements with the largest Fisher information before training are updated."""

    paper = PAPER + ", section 2.3"

    kept_share: float = option(0.3, most=1)
    masks: dict[Tensor, Tensor] = field(default_factory=dict, init=False, repr=False)

    def before_training(self, training: Training) -> None:
        training.observer.stage("importance", len(training.batches))
        fisher = {param: torch.zeros_like(param) for param in training.model.base_model.parameters()}
        for batch in training.batches.epoch(0):
            loss = training.task_loss(batch)
            loss.backward()
            for param, information in fisher.items():
                if param.grad is not None:
                    information.addcmul_(param.grad, param.grad)
            training.optimizer.zero_grad()
            training.observer.advance(loss.item())
        values = torch.cat([information.flatten() for information in fisher.values()])
        dropped = round((1 - self.kept_share) * values.numel())
        threshold = values.kthvalue(dropped).values if dropped else values.new_tensor(-1.0)
        self.masks = {param: information > threshold for param, information in fisher.items()}

    def after_backward(self, training: Training) -> None:
        for param, mask in self.masks.items():
            if param.grad is not None:
                param.grad.mul_(mask)
