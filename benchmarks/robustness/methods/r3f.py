"""R3F: the prediction must not change under small random noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roast_optim import symmetric_kl

from ..options import option
from ..training import Method, Training
from .perturbed import forward_with, word_embeddings


@dataclass
class R3F(Method):
    """The task loss and the symmetric KL to the prediction with uniform noise on the word embeddings."""

    paper = "Aghajanyan et al., Better fine-tuning by reducing representational collapse, ICLR 2021"

    noise: float = option(1e-5)
    consistency_weight: float = option(1.0)

    def loss(self, training: Training, batch: dict[str, Tensor]) -> Tensor:
        output = training.model(**batch)
        embeddings = word_embeddings(training.model, batch)
        noise = torch.empty_like(embeddings).uniform_(-self.noise, self.noise)
        noisy = forward_with(training.model, batch, embeddings + noise)
        loss: Tensor = output.loss + self.consistency_weight * symmetric_kl(output.logits, noisy.logits)
        return loss
