"""Lists of parameters as models have them, with gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

Shapes = list[tuple[int, ...]]


def bert_shapes(layers: int, hidden: int, vocabulary: int, positions: int = 512) -> Shapes:
    """The shapes of all parameters of a BERT encoder with its embedding tables and pooler, in the model's order."""

    def linear(inputs: int, outputs: int) -> Shapes:
        return [(outputs, inputs), (outputs,)]

    norm: Shapes = [(hidden,), (hidden,)]
    embeddings: Shapes = [(vocabulary, hidden), (positions, hidden), (2, hidden), *norm]
    attention = [*linear(hidden, hidden) * 4, *norm]
    feed_forward = [*linear(hidden, 4 * hidden), *linear(4 * hidden, hidden), *norm]
    return [*embeddings, *[*attention, *feed_forward] * layers, *linear(hidden, hidden)]


WORKLOADS: Mapping[str, Shapes] = {
    "25M": bert_shapes(layers=12, hidden=384, vocabulary=8192),
    "110M": bert_shapes(layers=12, hidden=768, vocabulary=30522),
    "1,000 tiny tensors": [(128,)] * 1000,
}

# What only a GPU is asked to hold.
LARGE_WORKLOADS: Mapping[str, Shapes] = {
    "355M": bert_shapes(layers=24, hidden=1024, vocabulary=50265),
    "1B": bert_shapes(layers=18, hidden=2048, vocabulary=50265),
}

# The same lists with next to nothing in them: to see that the benchmarks run, not how fast.
TINY_WORKLOADS: Mapping[str, Shapes] = {
    "25M": bert_shapes(layers=1, hidden=16, vocabulary=64, positions=16),
    "110M": bert_shapes(layers=2, hidden=16, vocabulary=128, positions=16),
    "1,000 tiny tensors": [(8,)] * 10,
}


def workloads(tiny: bool) -> Mapping[str, Shapes]:
    """The shapes under each workload's name."""
    return TINY_WORKLOADS if tiny else WORKLOADS


def numel(shapes: Shapes) -> int:
    """Elements of all tensors together."""
    return sum(math.prod(shape) for shape in shapes)


def make_parameters(
    shapes: Shapes, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[nn.Parameter]:
    """Normally distributed parameters of scale 0.02 with gradients, whose scale differs from tensor to tensor.

    The gradients' scales are log-uniform between 1e-5 and 1e-1, so that importance spreads over many orders of
    magnitude, as it does between the layers of a model.
    """
    generator = torch.Generator(device).manual_seed(seed)
    exponents = torch.empty(len(shapes)).uniform_(-5, -1, generator=torch.Generator().manual_seed(seed)).tolist()
    parameters = []
    for shape, exponent in zip(shapes, exponents, strict=True):
        parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype).normal_(0, 0.02, generator=generator))
        parameter.grad = torch.empty_like(parameter).normal_(0, 10**exponent, generator=generator)
        parameters.append(parameter)
    return parameters
