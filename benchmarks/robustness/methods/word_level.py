"""Noise on words instead of embeddings: words dropped at random, and an adversary that exchanges words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roast_optim import symmetric_kl

from ..options import option
from ..training import Method, Training
from .perturbed import forward_with, word_embeddings, word_table
from .roast import ROAST, SelectiveOnly


@dataclass
class WordDropout(Method):
    """The task loss with each token hidden from attention with a probability, special tokens excepted."""

    paper = "Guo et al., Sequence-level mixed sample data augmentation, EMNLP 2020 (its baseline word dropout)"

    probability: float = option(0.1, most=1)

    def loss(self, training: Training, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"]
        hidden = (torch.rand(mask.shape, device=mask.device) < self.probability) & ordinary(training, batch)
        loss: Tensor = training.model(**{**batch, "attention_mask": mask * ~hidden}).loss
        return loss


@dataclass
class WordLevelRoast(SelectiveOnly):
    """RoAST whose adversary exchanges words: an ablation of perturbing embeddings.

    The share of tokens with the largest gradients is exchanged, each for the token of the vocabulary that raises the
    loss most to first order (HotFlip: Ebrahimi et al., ACL 2018).
    """

    paper = ROAST + "; ablation"

    consistency_weight: float = option(0.01)
    adversarial_weight: float = option(1.0)
    exchanged_share: float = option(0.15, most=1)

    def loss(self, training: Training, batch: dict[str, Tensor]) -> Tensor:
        model = training.model
        embeddings = word_embeddings(model, batch)
        addend = torch.zeros_like(embeddings, requires_grad=True)
        clean = forward_with(model, batch, embeddings + addend)
        (gradient,) = torch.autograd.grad(clean.loss, addend, retain_graph=True)
        other = model(**{**batch, "input_ids": self.exchange(training, batch, gradient)})
        loss: Tensor = clean.loss + self.adversarial_weight * other.loss
        return loss + self.consistency_weight * symmetric_kl(clean.logits, other.logits)

    def exchange(self, training: Training, batch: dict[str, Tensor], gradient: Tensor) -> Tensor:
        """The token numbers [batch, tokens] after the exchange."""
        table = word_table(training.model)
        size = gradient.norm(dim=-1).masked_fill(~ordinary(training, batch), -1.0)
        count = max(1, round(self.exchanged_share * size.shape[1]))
        exchanged = batch["input_ids"].clone()
        for text, places in enumerate(size.topk(count).indices):
            places = places[size[text, places] > 0]
            gains = gradient[text, places] @ table.T  # the gain over the present token differs by a constant
            gains[:, training.batches.classifier.tokenizer.all_special_ids] = -torch.inf
            exchanged[text, places] = gains.argmax(-1)
        return exchanged


def ordinary(training: Training, batch: dict[str, Tensor]) -> Tensor:
    """Which tokens [batch, tokens] are neither padding nor special."""
    special = torch.tensor(training.batches.classifier.tokenizer.all_special_ids, device=batch["input_ids"].device)
    return batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], special)
