"""Sequence to sequence with T5: the encoder's embeddings are perturbed, the consistency is per target token.

Run it with ``python docs/recipes/sequence_to_sequence.py``. Nothing is downloaded: model and data are tiny and made
here. For your own, replace ``make_model`` by ``T5ForConditionalGeneration.from_pretrained(...)``.
"""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import T5Config, T5ForConditionalGeneration, default_data_collator

sys.path.append(str(Path(__file__).resolve().parents[2]))  # finds roast_optim in a clone where it is not installed

from roast_optim import AdversarialEmbedding, RoastAdamW

VOCABULARY = 24


def make_model():
    config = T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config)


def make_data(samples):
    """The target repeats the source; its padding is labelled -100, which neither loss counts."""
    rows = []
    for _ in range(samples):
        length = int(torch.randint(3, 7, ()))
        input_ids = torch.zeros(6, dtype=torch.long)
        input_ids[:length] = torch.randint(2, VOCABULARY, (length,))
        labels = input_ids.masked_fill(input_ids == 0, -100)
        rows.append({"input_ids": input_ids, "attention_mask": (input_ids != 0).long(), "labels": labels})
    return rows


def main(epochs=4):
    torch.manual_seed(0)
    model = make_model()
    loader = DataLoader(make_data(512), batch_size=32, shuffle=True, collate_fn=default_data_collator)
    # Encoder and decoder blocks are selective; the shared embeddings and the output layer are always updated.
    optimizer = RoastAdamW(model, lr=5e-3, weight_decay=0.01, alpha=0.6, beta=5.0, refresh_every=len(loader))
    adversary = AdversarialEmbedding(model, step_size=0.1, consistency_weight=0.1)

    losses = []
    for epoch in range(epochs):
        model.train()
        for batch in loader:
            adversary(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(adversary.last_losses["task"].item())
        print(f"epoch {epoch}: task loss {losses[-1]:.3f}, consistency {adversary.last_losses['consistency']:.4f}")
    return losses


if __name__ == "__main__":
    main()
