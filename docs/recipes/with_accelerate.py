"""Accelerate: the plain loop under Accelerator.prepare, with gradient accumulation and clipping.

Run it with ``python docs/recipes/with_accelerate.py`` or ``accelerate launch docs/recipes/with_accelerate.py``. Nothing
is downloaded: model and data are tiny and made here.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, default_data_collator

sys.path.append(str(Path(__file__).resolve().parents[2]))  # finds roast_optim in a clone where it is not installed

from roast_optim import AdversarialEmbedding, RoastAdamW


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


def main(epochs=3, **options):
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2, **options)
    model = make_model()
    adversary = AdversarialEmbedding(model)  # before prepare, which may wrap, shard or compile the model
    optimizer = RoastAdamW(model, lr=1e-3, weight_decay=0.01, alpha=0.6, beta=5.0, refresh_every=None)
    loader = DataLoader(make_data(256), batch_size=8, shuffle=True, collate_fn=default_data_collator)

    # Keep your own name for the optimizer: the prepared one steps, refresh() and selection_stats() are on yours.
    model, prepared, loader = accelerator.prepare(model, optimizer, loader)
    adversary.model = model

    losses = []
    for epoch in range(epochs):
        model.train()
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(adversary(**batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                prepared.step()
                prepared.zero_grad()
        optimizer.refresh()  # every epoch; leave refresh_every out to have it done by itself
        losses.append(adversary.last_losses["task"].item())
        accelerator.print(f"epoch {epoch}: task loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
