"""The objective of an adversary that ascends in several steps, on some rows, in another direction; written out.

As :mod:`tests.oracles.objective`, it knows nothing of the package. What is random there is given here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .objective import Objective, symmetric_divergence


def length(row: Tensor, norm: str) -> Tensor:
    """What a row is divided by to have length one."""
    return {"linf": row.abs().max(), "sign": row.abs(), "l2": row.square().sum().sqrt()}[norm]


def ascent_objective(
    model: nn.Module,
    batch: dict[str, Tensor],
    embedding: nn.Module,
    *,
    step_size: float,
    norm: str = "linf",
    relative: bool = False,
    ascents: int = 1,
    start: Tensor | None = None,
    direction: str = "task",
    noise: Tensor | None = None,
    rows: Sequence[int] | None = None,
) -> Objective:
    """The objective of a deterministic classifier whose embeddings are ``[batch, tokens, hidden]``.

    Args:
        model, batch, embedding: as in :func:`.objective.objective`; the batch has an ``attention_mask``.
        step_size: of all steps together; with ``relative``, a share of each token's own embedding, in l2.
        norm: "linf", "sign" or "l2".
        ascents: how many steps.
        start: beside which every gradient is taken; of the embeddings of ``rows``.
        direction: "task", "consistency" or "noise".
        noise: the random direction, if it is that.
        rows: which take part; None: all. The losses are then times their share.
    """
    rows = range(len(batch["labels"])) if rows is None else rows
    part = {name: values[list(rows)] for name, values in batch.items()}
    seen: list[Tensor] = []

    def run(inputs: dict[str, Tensor], hook: Callable[[nn.Module, Any, Tensor], Tensor | None]) -> Any:
        handle = embedding.register_forward_hook(hook)
        try:
            return model(**inputs)
        finally:
            handle.remove()

    clean = run(batch, lambda module, args, output: seen.append(output.detach()))
    before = seen[0][list(rows)].double()
    logits = clean.logits[list(rows)]
    beside = torch.zeros_like(before) if start is None else start.double()

    def step(at: Tensor) -> Tensor:
        found = torch.zeros_like(at)
        for sample, token in torch.cartesian_prod(torch.arange(at.shape[0]), torch.arange(at.shape[1])).tolist():
            row = at[sample, token]
            if not row.any() or not part["attention_mask"][sample, token]:
                continue
            unit = torch.nan_to_num(row / length(row, norm)) if direction != "noise" or norm != "linf" else row
            if relative:
                unit = unit / unit.square().sum().sqrt() * before[sample, token].square().sum().sqrt()
            found[sample, token] = step_size / ascents * unit
        return found

    moved = before.clone()
    if direction == "noise":
        assert noise is not None
        moved = moved + step(noise.double())
    else:
        for _ in range(ascents):
            leaf = (moved + beside).float().requires_grad_()
            output = run(part, lambda module, args, output, leaf=leaf: leaf)  # type: ignore[misc]
            loss = output.loss if direction == "task" else symmetric_divergence(logits.detach(), output.logits).mean()
            moved = moved + step(torch.autograd.grad(loss, leaf)[0].double())
    perturbed = run(part, lambda module, args, output: moved.float())
    share = len(list(rows)) / len(batch["labels"])
    consistency = symmetric_divergence(logits, perturbed.logits).mean()
    return Objective(clean.loss, share * perturbed.loss, share * consistency, moved - before)
