"""A plain PyTorch loop: sentiment-like classification with RoAST.

Run it with ``python docs/recipes/plain_loop.py``. Nothing is downloaded: model and data are tiny and made here. For
your own, replace ``make_model`` by ``AutoModelForSequenceClassification.from_pretrained(...)``.
"""

import sys
from pathlib import Path

import torch
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


def main(epochs=4):
    torch.manual_seed(0)
    model = make_model()
    loader = DataLoader(make_data(512), batch_size=16, shuffle=True, collate_fn=default_data_collator)

    optimizer = RoastAdamW(model, lr=1e-3, weight_decay=0.01, alpha=0.6, beta=5.0, refresh_every=len(loader))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=epochs * len(loader))
    adversary = AdversarialEmbedding(model, step_size=0.1, consistency_weight=0.01)

    losses = []
    for epoch in range(epochs):
        model.train()
        for batch in loader:
            output = adversary(**batch)  # instead of model(**batch)
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(adversary.last_losses["task"].item())
        share = optimizer.selection_stats()["expected_share"]
        print(f"epoch {epoch}: task loss {losses[-1]:.3f}, {share:.0%} of the elements will be updated in each step")
    return losses


if __name__ == "__main__":
    main()
