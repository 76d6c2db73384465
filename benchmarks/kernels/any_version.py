"""One version of the package at work, told by lines what to do: ``python any_version.py JSON``.

It runs in the environment of the version that it measures, an old one too. So it uses what every version has, imports
nothing of these benchmarks, and answers each line ``run`` with the seconds that one run of the case took.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from roast_optim import AdversarialEmbedding, RoastAdamW

Work = Callable[[], object]
Shapes = list[tuple[int, ...]]


def parameters(shapes: Shapes, dtype: torch.dtype) -> list[nn.Parameter]:
    """Parameters with gradients of many scales."""
    torch.manual_seed(0)
    made = []
    for number, shape in enumerate(shapes):
        parameter = nn.Parameter((0.02 * torch.randn(shape)).to(dtype))
        parameter.grad = (10.0 ** -(1 + number % 5) * torch.randn(shape)).to(dtype)
        made.append(parameter)
    return made


def ranked(shapes: Shapes, dtype: torch.dtype) -> RoastAdamW:
    """The optimizer after its first refresh, every tensor selective."""
    groups = [{"params": parameters(shapes, dtype), "selective": True}]
    optimizer = RoastAdamW(groups, lr=1e-5, alpha=0.9, beta=10.0, refresh_every=None, backend="native")
    with optimizer.measure_importance():
        optimizer.step()
    optimizer.refresh()
    return optimizer


def steps(shapes: Shapes, dtype: torch.dtype) -> tuple[Work, Work]:
    """Nothing to prepare, and a step; several where one is too short to be timed."""
    optimizer, times = ranked(shapes, dtype), 10 if sum(map(math.prod, shapes)) < 1_000_000 else 1
    return lambda: None, lambda: [optimizer.step() for _ in range(times)]


def refreshes(shapes: Shapes, dtype: torch.dtype) -> tuple[Work, Work]:
    """A step, after which there is importance, and the refresh."""
    optimizer = ranked(shapes, dtype)
    return optimizer.step, optimizer.refresh


def objectives(gradient: str) -> tuple[Work, Work]:
    """Forward and backward of the whole objective on a small BERT made from its configuration; 16 x 64 tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = BertForSequenceClassification(config).train()
    adversary = AdversarialEmbedding(model, step_size=0.1, consistency_weight=0.01, gradient=gradient)
    tokens, labels = torch.randint(1000, 30000, (16, 64)), torch.randint(2, (16,))

    def run() -> None:
        adversary(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels).loss.backward()

    return model.zero_grad, run


def work(what: str, shapes: Shapes, dtype: str, gradient: str) -> tuple[Work, Work]:
    """What is to be prepared, and what is to be timed: a "step", a "refresh" or the "adversary"."""
    if what == "adversary":
        return objectives(gradient)
    return {"step": steps, "refresh": refreshes}[what](shapes, getattr(torch, dtype))


def main() -> None:
    prepare, run = work(**json.loads(sys.argv[1]))
    for _ in range(3):
        prepare()
        run()
    print("ready", flush=True)
    for _ in sys.stdin:
        prepare()
        started = time.perf_counter()
        run()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
