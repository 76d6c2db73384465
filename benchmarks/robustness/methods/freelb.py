"""FreeLB: several ascent steps on the word embeddings, whose gradients all count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..options import option
from ..training import Method, Training
from .perturbed import forward_with, word_embeddings


@dataclass
class FreeLB(Method):
    """The mean task loss over `steps` perturbations, each one step of gradient ascent from the one before.

    All passes of a step have the same dropout, so that every ascent is on the same network (section 3.3).

    Args:
        step_size: length of an ascent step for the embeddings of a text.
        largest: largest length of the perturbation of a text.
    """

    paper = "Zhu et al., FreeLB: Enhanced adversarial training for natural language understanding, ICLR 2020"

    steps: int = option(3, least=1)
    step_size: float = option(0.03)
    largest: float = option(0.3)

    def loss(self, training: Training, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"][..., None].float()
        start = torch.empty_like(word_embeddings(training.model, batch)).uniform_(-1, 1) * mask
        delta = start.detach() * self.largest / (mask.sum((1, 2), keepdim=True) * start.shape[-1]).sqrt()
        devices = [start.device] if start.is_cuda else []
        for _ in range(self.steps - 1):
            with torch.random.fork_rng(devices):  # the next pass draws the same dropout
                loss = self.perturbed_loss(training, batch, delta.requires_grad_())
            loss.backward()  # that of the last pass is left to the training loop
            assert delta.grad is not None
            delta = self.ascend(delta.detach(), delta.grad)
        return self.perturbed_loss(training, batch, delta)

    def perturbed_loss(self, training: Training, batch: dict[str, Tensor], delta: Tensor) -> Tensor:
        """The part that one pass has in the mean."""
        loss: Tensor = forward_with(training.model, batch, word_embeddings(training.model, batch) + delta).loss
        return loss / self.steps

    def ascend(self, delta: Tensor, gradient: Tensor) -> Tensor:
        """One normalised step, and back to the ball; lengths are of all embeddings of a text together."""
        delta = delta + self.step_size * gradient / length(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
        return delta * (self.largest / length(delta).clamp_min(self.largest))


def length(values: Tensor) -> Tensor:
    """L2 norm over tokens and dimensions: [batch, 1, 1]."""
    lengths: Tensor = torch.linalg.vector_norm(values, dim=(1, 2), keepdim=True)
    return lengths
