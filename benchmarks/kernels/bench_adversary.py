"""What the adversarial objective costs: forward and backward on MiniLM, the perturbation, the symmetric KL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification

from benchmarks.robustness.models import MINILM, locate
from roast_optim import AdversarialEmbedding, symmetric_kl
from roast_optim.evaluation.classifier import quiet_transformers
from roast_optim.kernels import triton
from roast_optim.perturbation import perturbation

from .conftest import Compare, Row
from .contestants import cannot_run
from .pairs import Contestant, copy_like

STRAIGHTFORWARD = "straightforward torch"
STEP_SIZE = 0.1
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
    batch = token_batch(plain.config.vocab_size, device)
    candidate = Contestant(name, training_step(adversary, roast, batch))
    compare(candidate, [Contestant("plain step", training_step(plain, plain, batch))], seconds=25)


@implementations
def test_perturbation(row: Row, compare: Compare, device: torch.device, tiny: bool, backend: str) -> None:
    row("perturbed embedding, 32 x 512 x 768", backend, cannot_run(backend, device))
    shape = (2, 8, 16) if tiny else (32, 512, 768)
    embedding, gradient = torch.randn(shape, device=device), torch.randn(shape, device=device)
    tokens = torch.arange(shape[1], device=device) < torch.randint(1, shape[1] + 1, (shape[0], 1), device=device)

    def straightforward() -> Tensor:
        largest = gradient.abs().amax(dim=-1, keepdim=True)
        return embedding + STEP_SIZE * gradient / (largest + 1e-8) * tokens.unsqueeze(-1)

    def reference() -> Tensor:
        return embedding + perturbation(gradient, STEP_SIZE, "linf", tokens=tokens)[0]

    def kernel() -> object:
        return triton.perturbed_embedding(embedding, gradient, STEP_SIZE, "linf", tokens=tokens)

    moved = 3 * embedding.nbytes + tokens.nbytes
    candidate = Contestant(backend, kernel if backend == "triton" else reference, bytes_moved=moved)
    compare(candidate, [copy_like(candidate, device), Contestant(STRAIGHTFORWARD, straightforward)])


@implementations
def test_symmetric_kl(row: Row, compare: Compare, device: torch.device, tiny: bool, backend: str) -> None:
    row("symmetric KL with both gradients, 1,024 x 30,522", backend, cannot_run(backend, device))
    shape = (4, 16) if tiny else (1024, 30522)
    logits = [torch.randn(shape, device=device, requires_grad=True) for _ in range(2)]

    def straightforward(p: Tensor, q: Tensor) -> Tensor:
        log_p, log_q = F.log_softmax(p, dim=-1), F.log_softmax(q, dim=-1)
        there = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return there + F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        rows: Tensor = triton.symmetric_kl_rows(p, q)
        return rows.mean()

    def differentiated(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(*logits), logits)

    loss = kernel if backend == "triton" else symmetric_kl
    candidate = Contestant(backend, differentiated(loss), bytes_moved=4 * logits[0].nbytes)
    compare(candidate, [copy_like(candidate, device), Contestant(STRAIGHTFORWARD, differentiated(straightforward))])


def training_step(call: Callable[..., Any], model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """Forward and backward, without an optimizer."""

    def step() -> None:
        call(**batch).loss.backward()
        model.zero_grad()

    return step


def minilm(tiny: bool) -> Any:
    """all-MiniLM-L6-v2 with a classification head, in training mode; 22.7M parameters."""
    path, models = str(locate(MINILM)), cast(Any, AutoModelForSequenceClassification)
    if tiny:
        config = AutoConfig.from_pretrained(path, num_hidden_layers=1, hidden_size=24, intermediate_size=48)
        return models.from_config(config).train()
    with quiet_transformers():
        return models.from_pretrained(path).train()


def token_batch(vocabulary: int, device: torch.device) -> dict[str, Tensor]:
    """Random tokens without padding, and labels."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (BATCH, LENGTH), generator=generator).to(device)
    labels = torch.randint(2, (BATCH,), generator=generator).to(device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
