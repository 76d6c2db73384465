"""Lightning: a module whose loss is the adversary's, and a callback that refreshes the ranks.

Run it with ``python docs/recipes/with_lightning.py``. Nothing is downloaded: model and data are tiny and made here.
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, default_data_collator

sys.path.append(str(Path(__file__).resolve().parents[2]))  # finds roast_optim in a clone where it is not installed

from roast_optim import AdversarialEmbedding, RoastAdamW
from roast_optim.integrations.lightning import RoastCallback


def make_model():
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=2
    )
    return BertForSequenceClassification(config)


def make_data(samples):
    """Sentences of 12 tokens, whose distribution depends on the label."""
    labels = torch.randint(0, 2, (samples,))
    input_ids = torch.randint(3, 70, (samples, 12)) + 30 * labels[:, None]
    return [{"input_ids": row, "labels": label} for row, label in zip(input_ids, labels, strict=True)]


class Classifier(LightningModule):
    """Nothing here but the three methods that every LightningModule has."""

    def __init__(self):
        super().__init__()
        self.model = make_model().train()  # from_pretrained() returns evaluation mode, which Lightning keeps
        self.adversary = AdversarialEmbedding(self.model)
        self.losses = []

    def training_step(self, batch, batch_index):
        """The objective: Lightning calls this in the closure that it passes to the optimizer."""
        loss = self.adversary(**batch).loss
        self.log_dict({f"{name}_loss": value for name, value in self.adversary.last_losses.items()})
        return loss

    def on_train_epoch_end(self):
        """Keep the task loss of the epoch's last batch."""
        self.losses.append(self.adversary.last_losses["task"].item())

    def configure_optimizers(self):
        """The optimizer."""
        return RoastAdamW(self.model, lr=1e-3, weight_decay=0.01, alpha=0.6, beta=5.0, refresh_every=None)


def main(epochs=3):
    torch.manual_seed(0)
    module = Classifier()
    loader = DataLoader(make_data(256), batch_size=16, shuffle=True, collate_fn=default_data_collator)
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[RoastCallback()],
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, loader)
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
    return module.losses


if __name__ == "__main__":
    main()
