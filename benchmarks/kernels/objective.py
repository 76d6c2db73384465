"""The adversarial objective and its two kernels as contestants, beside plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from roast_optim import symmetric_kl
from roast_optim.kernels import triton
from roast_optim.perturbation import perturbation

from .pairs import Contestant

STRAIGHTFORWARD = "straightforward torch"
STEP_SIZE = 0.1


def training_step(call: Callable[..., Any], model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """Forward and backward, without an optimizer."""

    def step() -> None:
        call(**batch).loss.backward()
        model.zero_grad()

    return step


def token_batch(shape: tuple[int, int], vocabulary: int, device: torch.device) -> dict[str, Tensor]:
    """Random tokens ``[batch, length]`` without padding, and labels."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, shape, generator=generator).to(device)
    labels = torch.randint(2, shape[:1], generator=generator).to(device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def perturbations(
    shape: tuple[int, int, int], device: torch.device, backend: str, dtype: torch.dtype = torch.float32
) -> tuple[Contestant, Contestant]:
    """The perturbed embedding ``[batch, tokens, hidden]``, by the backend and as one would first write it."""
    embedding, gradient = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
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
    return candidate, Contestant(STRAIGHTFORWARD, straightforward)


def divergences(
    shape: tuple[int, int], device: torch.device, backend: str, dtype: torch.dtype = torch.float32
) -> tuple[Contestant, Contestant]:
    """The symmetric KL of logits ``[rows, classes]`` with both gradients, by the backend and in plain torch."""
    logits = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(2)]

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
    return candidate, Contestant(STRAIGHTFORWARD, differentiated(straightforward))
