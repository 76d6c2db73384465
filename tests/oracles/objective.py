"""The adversarial objective of arXiv 2312.04032, section 3.1, written down once more, pass by pass.

It knows nothing of the package: what is perturbed, what is padding and which predictions count are told by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Objective:
    """The parts of the objective, each with its graph."""

    task: Tensor
    adversarial: Tensor
    consistency: Tensor
    perturbation: Tensor

    def total(self, consistency_weight: float, adversarial_weight: float = 1.0, clean_weight: float = 1.0) -> Tensor:
        """The weighted sum."""
        return clean_weight * self.task + adversarial_weight * self.adversarial + consistency_weight * self.consistency


def objective(
    model: nn.Module,
    batch: dict[str, Any],
    embedding: nn.Module,
    *,
    loss_and_logits: Callable[[Any], tuple[Tensor, Tensor]] = lambda output: (output.loss, output.logits),
    step_size: float = 0.1,
    norm: str = "linf",
    perturbed: Tensor | None = None,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    clean_side_is_constant: bool = False,
) -> Objective:
    """The objective of a deterministic model on one batch.

    Args:
        model: called with ``**batch``; ``loss_and_logits`` reads its output.
        batch: of the model.
        embedding: the module whose output is perturbed, ``[.., .., hidden]``.
        loss_and_logits: as above.
        step_size: of each token.
        norm: "linf", "sign" or "l2".
        perturbed: boolean, in the layout of the embedding output; None: every token.
        distance: of clean and adversarial logits; None: the mean of :func:`symmetric_divergence`.
        clean_side_is_constant: no gradient through the clean side of the distance.
    """
    embedded: list[Tensor] = []

    def run(hook: Callable[[nn.Module, Any, Tensor], Tensor | None]) -> tuple[Tensor, Tensor]:
        handle = embedding.register_forward_hook(hook)
        try:
            return loss_and_logits(model(**batch))
        finally:
            handle.remove()

    def make_leaf(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().clone().requires_grad_())
        return embedded[-1].clone()  # autocast converts a leaf only once, which changes the rounding of its gradient

    loss, _ = run(make_leaf)
    with torch.autocast("cpu", enabled=False):  # which is for forward passes
        gradient = torch.autograd.grad(loss, embedded[0])[0].double()
    step = torch.zeros_like(gradient)
    for place in torch.cartesian_prod(*map(torch.arange, gradient.shape[:2])).tolist():
        row = gradient[tuple(place)]
        if row.any() and (perturbed is None or perturbed[tuple(place)]):
            length = {"linf": row.abs().max(), "sign": row.abs(), "l2": row.square().sum().sqrt()}[norm]
            step[tuple(place)] = torch.nan_to_num(step_size * row / length)
    moved = (embedded[0].detach().float() + step.float()).to(embedded[0].dtype)

    task, clean_logits = run(lambda module, args, output: None)
    adversarial, logits = run(lambda module, args, output: moved)
    if clean_side_is_constant:
        clean_logits = clean_logits.detach()
    measure = distance or (lambda first, second: symmetric_divergence(first, second).mean())
    return Objective(task, adversarial, measure(clean_logits, logits), step)


def symmetric_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(p||q) + KL(q||p) of each row, from the probabilities, in float64."""
    p = torch.exp(logits_p.double()) / torch.exp(logits_p.double()).sum(-1, keepdim=True)
    q = torch.exp(logits_q.double()) / torch.exp(logits_q.double()).sum(-1, keepdim=True)
    return (p * torch.log(p / q) + q * torch.log(q / p)).sum(-1)


def counted_rows(labels: Tensor, *, predicts_next: bool) -> Tensor:
    """Boolean: which predictions of a language model have a label."""
    counted = torch.zeros_like(labels, dtype=torch.bool)
    for sample, row in enumerate(labels.tolist()):
        for token, label in enumerate(row):
            if label != -100 and (token > 0 or not predicts_next):
                counted[sample, token - 1 if predicts_next else token] = True
    return counted
