"""WConsol: an L2 pull towards the pre-trained weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..options import option
from ..training import Method, Training


@dataclass
class WeightConsolidation(Method):
    """AdamW, and after each step every pre-trained weight moves back by learning rate * strength * its distance.

    As in RecAdam the pull does not pass through Adam's moments; unlike there, it is constant over training.
    """

    paper = "Chen et al., Recall and learn: fine-tuning deep pretrained language models, EMNLP 2020"

    strength: float = option(100.0)
    pretrained: dict[Tensor, Tensor] = field(default_factory=dict, init=False, repr=False)

    def before_training(self, training: Training) -> None:
        backbone = training.model.base_model  # all but the classification head, which is new
        self.pretrained = {param: param.detach().clone() for param in backbone.parameters()}

    def after_step(self, training: Training) -> None:
        learning_rate = training.optimizer.param_groups[0]["lr"]
        share = min(1.0, learning_rate * self.strength)
        with torch.no_grad():
            for param, start in self.pretrained.items():
                param.lerp_(start, share)
