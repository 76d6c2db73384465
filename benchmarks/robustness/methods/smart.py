"""SMART: smoothness under adversarial noise, and small steps away from a moving average of the model."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from roast_optim import symmetric_kl

from ..options import option
from ..training import Method, Training
from .perturbed import forward_with, word_embeddings


@dataclass
class Smart(Method):
    """The task loss, a symmetric KL to the prediction under noise that maximises it, and one to the averaged model.

    Args:
        noise: standard deviation of the first noise.
        step_size: largest entry of the noise after its one step of ascent.
        smoothness_weight: of the first KL.
        proximal_weight: of the second.
        momentum: of the averaged model in the first tenth of the steps.
        later_momentum: of the averaged model in the steps after them.
    """

    paper = (
        "Jiang et al., SMART: Robust and efficient fine-tuning through principled regularized optimization, ACL 2020"
    )

    noise: float = option(1e-5)
    step_size: float = option(1e-3)
    smoothness_weight: float = option(1.0)
    proximal_weight: float = option(1.0)
    momentum: float = option(0.99, most=1)
    later_momentum: float = option(0.999, most=1)
    average: PreTrainedModel | None = field(default=None, init=False, repr=False)

    def before_training(self, training: Training) -> None:
        self.average = copy.deepcopy(training.model).eval().requires_grad_(False)

    def loss(self, training: Training, batch: dict[str, Tensor]) -> Tensor:
        assert self.average is not None
        model = training.model
        output = model(**batch)
        embeddings = word_embeddings(model, batch)
        delta = (torch.randn_like(embeddings) * self.noise).requires_grad_()
        changed = symmetric_kl(output.logits.detach(), forward_with(model, batch, embeddings.detach() + delta).logits)
        (gradient,) = torch.autograd.grad(changed, delta)
        largest = gradient.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        noisy = forward_with(model, batch, embeddings + self.step_size * gradient / largest)
        with torch.no_grad():
            before = self.average(**batch).logits
        loss: Tensor = output.loss
        loss = loss + self.smoothness_weight * symmetric_kl(output.logits, noisy.logits)
        return loss + self.proximal_weight * symmetric_kl(output.logits, before)

    def after_step(self, training: Training) -> None:
        assert self.average is not None
        momentum = self.momentum if training.step <= 0.1 * training.total_steps else self.later_momentum
        with torch.no_grad():
            for kept, current in zip(self.average.parameters(), training.model.parameters(), strict=True):
                kept.lerp_(current, 1 - momentum)
