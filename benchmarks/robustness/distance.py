"""How far fine-tuning takes a model from its pre-trained weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from roast_optim.evaluation.classifier import PREDICTION_BATCH, Classifier
from roast_optim.evaluation.sets import Texts

MOVED = 0.01  # an element has moved if by more than this part of the standard deviation of its tensor


class DistanceFromPretrained:
    """Remembers the model as it is now, and measures how far it is from that later.

    Args:
        texts: on which the hidden states are compared.
    """

    def __init__(self, classifier: Classifier, texts: Sequence[Texts]) -> None:
        self.classifier = classifier
        self.texts = texts
        self.weights = {name: param.detach().clone() for name, param in classifier.model.base_model.named_parameters()}
        self.states = self.hidden_states()

    def measure(self) -> dict[str, float]:
        """The distances.

        Returns:
            l2: length of the difference of all pre-trained parameters; share_moved: share of their elements that
            have moved; cka: linear centred kernel alignment of the last hidden states (Kornblith et al., ICML 2019);
            cosine: their mean cosine similarity.
        """
        squared, moved, elements = 0.0, 0, 0
        for name, param in self.classifier.model.base_model.named_parameters():
            start = self.weights[name]
            change = (param.detach() - start).abs()
            squared += float(change.square().sum(dtype=torch.float64))
            spread = start.std() if start.numel() > 1 else start.abs().max()
            moved += int((change > MOVED * spread).sum())
            elements += start.numel()
        states = self.hidden_states()
        return {
            "l2": squared**0.5,
            "share_moved": moved / elements,
            "cka": linear_cka(self.states, states),
            "cosine": float(torch.cosine_similarity(self.states, states, dim=-1).mean()),
        }

    def hidden_states(self) -> Tensor:
        """Last hidden states [texts, hidden], float64: the mean over the tokens of each text."""
        model = self.classifier.model
        features = self.classifier.encode(self.texts)
        was_training = model.training
        model.eval()
        found = []
        with torch.no_grad():
            for start in range(0, len(features), PREDICTION_BATCH):
                batch = self.classifier.collate(features[start : start + PREDICTION_BATCH])
                output = model(**batch, output_hidden_states=True)
                states = output.hidden_states if "hidden_states" in output else output.encoder_hidden_states
                mask = batch["attention_mask"][..., None].double()
                found.append(((states[-1].double() * mask).sum(1) / mask.sum(1)).cpu())
        model.train(was_training)
        return torch.cat(found)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Similarity of two representations [rows, features] of the same rows, 1 if they differ by rotation and scale."""
    first, second = first - first.mean(0), second - second.mean(0)
    shared = (first.T @ second).square().sum()
    return float(shared / ((first.T @ first).norm() * (second.T @ second).norm()))
