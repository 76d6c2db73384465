"""One version of the package at work, told by lines what to do: ``python any_version.py CASE``.

It runs in the environment of the version that it measures, an old one too. So it uses what every version has, imports
nothing of these benchmarks, and answers each line ``run`` with the seconds that one run of the case took.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from roast_optim import AdversarialEmbedding, RoastAdamW

Work = Callable[[], object]
LAYERS = {"25M": (12, 384, 8192), "110M": (12, 768, 30522)}
TINY_TENSORS = "1,000 tiny tensors"


def parameters(size: str, dtype: torch.dtype) -> list[nn.Parameter]:
    """Of a BERT of that size, or so many tensors of 128 elements, with gradients of many scales."""
    if size == TINY_TENSORS:
        shapes: list[tuple[int, ...]] = [(128,)] * 1000
    else:
        layers, hidden, vocabulary = LAYERS[size]
        layer = [(hidden, hidden), (hidden,)] * 4 + [(4 * hidden, hidden), (4 * hidden,), (hidden, 4 * hidden)]
        shapes = [(vocabulary, hidden), (512, hidden), *(layer + [(hidden,)] * 5) * layers]
    torch.manual_seed(0)
    made = []
    for number, shape in enumerate(shapes):
        parameter = nn.Parameter((0.02 * torch.randn(shape)).to(dtype))
        parameter.grad = (10.0 ** -(1 + number % 5) * torch.randn(shape)).to(dtype)
        made.append(parameter)
    return made


def ranked(size: str, dtype: torch.dtype) -> RoastAdamW:
    """The optimizer after its first refresh, every tensor selective."""
    groups = [{"params": parameters(size, dtype), "selective": True}]
    optimizer = RoastAdamW(groups, lr=1e-5, alpha=0.9, beta=10.0, refresh_every=None, backend="native")
    with optimizer.measure_importance():
        optimizer.step()
    optimizer.refresh()
    return optimizer


def steps(size: str, dtype: torch.dtype) -> tuple[Work, Work]:
    """Nothing to prepare, and a step; several where one is too short to be timed."""
    optimizer, times = ranked(size, dtype), 10 if size == TINY_TENSORS else 1
    return lambda: None, lambda: [optimizer.step() for _ in range(times)]


def refreshes(size: str, dtype: torch.dtype) -> tuple[Work, Work]:
    """A step, after which there is importance, and the refresh."""
    optimizer = ranked(size, dtype)
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


def cases() -> dict[str, Callable[[], tuple[Work, Work]]]:
    """What makes each case, under its name."""
    found: dict[str, Callable[[], tuple[Work, Work]]] = {}
    for name, make in (("step", steps), ("refresh", refreshes)):
        for size in LAYERS:
            for dtype in (torch.float32, torch.bfloat16):
                found[f"{name} {size} {str(dtype).removeprefix('torch.')}"] = partial(make, size, dtype)
    found[f"step {TINY_TENSORS} float32"] = partial(steps, TINY_TENSORS, torch.float32)
    for gradient in ("exact", "fast"):
        found[f"adversary {gradient}"] = partial(objectives, gradient)
    return found


def main() -> None:
    prepare, run = cases()[sys.argv[1]]()
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
