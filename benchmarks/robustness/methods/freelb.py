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
        for step in range(self.steps):
            delta.requires_grad_()
            embeddings = word_embeddings(training.model, batch) + delta
            loss: Tensor = forward_with(training.model, batch, embeddings).loss / self.steps
            if step == self.steps - 1:
                break
            loss.backward()  # the training loop adds the last one
            assert delta.grad is not None
            delta = self.ascend(delta.detach(), delta.grad)
        return loss

    def ascend(self, delta: Tensor, gradient: Tensor) -> Tensor:
        """One normalised step, and back to the ball; lengths are of all embeddings of a text together."""
        delta = delta + self.step_size * gradient / length(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
        return delta * (self.largest / length(delta).clamp_min(self.largest))


def length(values: Tensor) -> Tensor:
    """L2 norm over tokens and dimensions: [batch, 1, 1]."""
    lengths: Tensor = torch.linalg.vector_norm(values, dim=(1, 2), keepdim=True)
    return lengths
