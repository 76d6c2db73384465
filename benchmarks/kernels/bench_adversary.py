"""What the adversarial objective costs: forward and backward on MiniLM, the perturbation, the symmetric KL."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from benchmarks.robustness.models import locate
from benchmarks.robustness.packaged_models import MINILM
from roast_optim import AdversarialEmbedding
from roast_optim.evaluation.classifier import quiet_transformers

from .conftest import Compare, Row
from .contestants import cannot_run
from .objective import STEP_SIZE, divergences, perturbations, token_batch, training_step
from .pairs import Contestant, copy_like

BATCH, LENGTH = 16, 64

# What the package does on every device, in torch operations, and the kernel that takes its place on a GPU.
implementations = pytest.mark.parametrize(
    ("device", "backend"), [("cpu", "reference"), ("cuda", "reference"), ("cuda", "triton")], indirect=["device"]
)


@pytest.mark.parametrize("gradient", ["exact", "fast"])
def test_forward_and_backward(row: Row, compare: Compare, device: torch.device, tiny: bool, gradient: str) -> None:
    name = f'RoAST, gradient="{gradient}"'
    row("forward and backward, MiniLM, 16 x 64 tokens", name, cannot_run("reference", device))
    plain, roast = minilm(tiny).to(device), minilm(tiny).to(device)
    adversary = AdversarialEmbedding(roast, step_size=STEP_SIZE, consistency_weight=0.01, gradient=gradient)
    batch = token_batch((BATCH, LENGTH), plain.config.vocab_size, device)
    candidate = Contestant(name, training_step(adversary, roast, batch))
    compare(candidate, [Contestant("plain step", training_step(plain, plain, batch))], seconds=25)


@implementations
def test_perturbation(row: Row, compare: Compare, device: torch.device, tiny: bool, backend: str) -> None:
    row("perturbed embedding, 32 x 512 x 768", backend, cannot_run(backend, device))
    shape = (2, 8, 16) if tiny else (32, 512, 768)
    candidate, straightforward = perturbations(shape, device, backend)
    compare(candidate, [copy_like(candidate, device), straightforward])


@implementations
def test_symmetric_kl(row: Row, compare: Compare, device: torch.device, tiny: bool, backend: str) -> None:
    row("symmetric KL with both gradients, 1,024 x 30,522", backend, cannot_run(backend, device))
    shape = (4, 16) if tiny else (1024, 30522)
    candidate, straightforward = divergences(shape, device, backend)
    compare(candidate, [copy_like(candidate, device), straightforward])


def minilm(tiny: bool) -> Any:
    """all-MiniLM-L6-v2 with a classification head, in training mode; 22.7M parameters."""
    path, models = str(locate(MINILM)), cast(Any, AutoModelForSequenceClassification)
    if tiny:
        config = AutoConfig.from_pretrained(path, num_hidden_layers=1, hidden_size=24, intermediate_size=48)
        return models.from_config(config).train()
    with quiet_transformers():
        return models.from_pretrained(path).train()
