"""LP-FT: first the classification head alone, then everything."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import AdamW

from ..options import option
from ..training import Method, Training


@dataclass
class LinearProbingThenFineTuning(Method):
    """`probing_epochs` over the head with the pre-trained model frozen, then plain fine-tuning."""

    paper = "Kumar et al., Fine-tuning can distort pretrained features and underperform out-of-distribution, ICLR 2022"

    probing_epochs: int = option(1)
    probing_learning_rate: float = option(1e-3)

    def before_training(self, training: Training) -> None:
        fit_head(training, self.probing_epochs, self.probing_learning_rate)


def fit_head(training: Training, epochs: int, learning_rate: float) -> None:
    """Train the classification head alone with AdamW; all else is as it was, also what requires gradients."""
    pretrained = set(training.model.base_model.parameters())
    head = [param for param in training.model.parameters() if param not in pretrained]
    trainable = [param for param in pretrained if param.requires_grad]
    for param in trainable:
        param.requires_grad_(False)
    optimizer = AdamW(head, lr=learning_rate)
    training.observer.stage("probing", epochs * len(training.batches))
    for epoch in range(epochs):
        for batch in training.batches.epoch(epoch):
            loss = training.task_loss(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            training.observer.advance(loss.item())
    for param in trainable:
        param.requires_grad_(True)
