"""FSDP2: parameters, moments, importance and ranks sharded over processes, and a distributed checkpoint.

Run it with ``torchrun --nproc-per-node 2 docs/recipes/with_fsdp2.py``. On GPUs use the backend "nccl" and move the
model to its device before sharding. Nothing is downloaded: model and data are tiny and made here.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler
from transformers import BertConfig, BertForSequenceClassification, default_data_collator

sys.path.append(str(Path(__file__).resolve().parents[2]))  # finds roast_optim in a clone where it is not installed

from roast_optim import AdversarialEmbedding, RoastAdamW, selective_param_groups


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


def main(folder, epochs=3):
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # the same model and data in every process
    model = make_model()
    data = make_data(256)
    sampler = DistributedSampler(data, seed=0)
    loader = DataLoader(data, batch_size=8, sampler=sampler, collate_fn=default_data_collator)

    adversary = AdversarialEmbedding(model)  # before sharding; gradient="exact" is the default, and needed here
    for block in model.bert.encoder.layer:
        fully_shard(block)
    fully_shard(model)
    # After sharding, with the same options in every process: masks then agree by themselves.
    optimizer = RoastAdamW(
        selective_param_groups(model, weight_decay=0.01), lr=1e-3, alpha=0.6, beta=5.0, refresh_every=len(loader)
    )

    model.train()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            adversary(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        share = optimizer.selection_stats()["expected_share"]  # a sum over all processes: all of them must ask
        if dist.get_rank() == 0:
            print(
                f"epoch {epoch}: task loss {adversary.last_losses['task']:.3f}, updated share {share:.0%}", flush=True
            )

    # Can be loaded by any number of processes, and continues bit for bit in the masks.
    parameters, state = get_state_dict(model, optimizer)
    dcp.save({"model": parameters, "optimizer": state}, checkpoint_id=folder)
    dist.destroy_process_group()
    # Gloo's threads outlive the group, because DTensor's caches hold it. One that lets go of a tensor while Python ends
    # aborts the process (github.com/pytorch/pytorch/issues/190489): give them a moment before.
    time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir() + "/roast_checkpoint")
