"""A causal language model with token-level consistency, trained with LoRA adapters or whole.

Run it with ``python docs/recipes/language_model.py`` (``--lora`` for adapters). Nothing is downloaded: model and data
are tiny and made here. For your own, replace ``make_model`` by ``AutoModelForCausalLM.from_pretrained(...)``.
"""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, default_data_collator

sys.path.append(str(Path(__file__).resolve().parents[2]))  # finds roast_optim in a clone where it is not installed

from roast_optim import AdversarialEmbedding, RoastAdamW

VOCABULARY = 32


def make_model(lora):
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    if lora:
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["c_attn"], fan_in_fan_out=True)
        model = get_peft_model(model, adapters)  # adapters lie in the blocks and so are selective
    return model


def make_data(samples):
    """Counting upwards from anywhere. The first two tokens are a prompt: labelled -100, they count in neither loss."""
    first = torch.randint(0, VOCABULARY, (samples, 1))
    input_ids = (first + torch.arange(12)) % VOCABULARY
    labels = input_ids.clone()
    labels[:, :2] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(input_ids, labels, strict=True)]


def main(lora=False, epochs=4):
    torch.manual_seed(0)
    model = make_model(lora)
    loader = DataLoader(make_data(512), batch_size=32, shuffle=True, collate_fn=default_data_collator)
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
    main("--lora" in sys.argv[1:])
