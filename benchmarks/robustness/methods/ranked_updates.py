"""Selection tried in plain torch: ranks of importance, and what follows from them around a step of any optimizer.

These are the candidates for options of :class:`roast_optim.RoastAdamW`; what proves worth it is built there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from torch.optim import Optimizer

BIN_SHIFT = 15  # of a float32's bits: 65,536 bins, as RoastAdamW ranks
FIRST_RANKS, MOST_BETWEEN = 32, 1024  # steps; see refresh_every="auto"
LEVELS = 256  # of a keep probability, so that a random byte decides


@dataclass
class Ranked:
    """A selective tensor with its importance, keep probability (None before the first ranks) and pre-trained values."""

    param: Tensor
    decay: float
    scores: Tensor
    start: Tensor | None = None
    keep: Tensor | None = None
    before: Tensor | None = None
    clean_gradient: Tensor | None = None


class RankedUpdates:
    """Importance, ranks and masks of the selective groups of an optimizer.

    Args:
        optimizer: its groups say `selective` and `weight_decay`.
        alpha, beta: keep probability 1 / (1 + exp(-2 beta (r - alpha))) of percentile rank r.
        importance: "gradient": sum of g^2; "movement": that times theta^2; "agreement": sum of max(0, g_clean g_rest);
            "random": a rank that is drawn once.
        importance_decay: share of the scores that a refresh leaves.
        pull: strength of the return to the pre-trained values; 0 keeps none.
        seed: of the masks.
    """

    def __init__(
        self, optimizer: Optimizer, *, alpha: float, beta: float, importance: str, importance_decay: float, pull: float,
        seed: int,
    ) -> None:  # fmt: skip
        self.alpha, self.beta, self.importance, self.importance_decay = alpha, beta, importance, importance_decay
        self.generator = numpy.random.Generator(numpy.random.SFC64(seed))
        self.tensors = [
            Ranked(
                param,
                group["weight_decay"],
                torch.zeros_like(param, dtype=torch.float32),
                param.detach().clone() if pull else None,
            )
            for group in optimizer.param_groups
            if group["selective"]
            for param in group["params"]
        ]
        if importance == "random":
            draws = torch.Generator().manual_seed(seed)
            for each in self.tensors:
                each.scores.copy_(torch.rand(each.param.shape, generator=draws))

    @property
    def ready(self) -> bool:
        """Whether there are ranks."""
        return bool(self.tensors) and self.tensors[0].keep is not None

    def accumulate(self) -> None:
        """Add this step's gradients to the importance."""
        for each in self.with_gradient():
            gradient = each.param.grad
            assert gradient is not None
            if self.importance in ("gradient", "movement"):
                each.scores.addcmul_(gradient, gradient)
            elif self.importance == "agreement" and each.clean_gradient is not None:
                rest = gradient - each.clean_gradient
                each.scores.add_(rest.mul_(each.clean_gradient).clamp_(min=0))
                each.clean_gradient = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Ranks over all tensors, from the importance so far; ties share the middle of their ranks."""
        weighed = [
            each.scores * each.param.square() if self.importance == "movement" else each.scores for each in self.tensors
        ]
        bins = [(scores.flatten().view(torch.int32) >> BIN_SHIFT).long() for scores in weighed]
        counts = torch.zeros(1 << 16, dtype=torch.float64)
        for each in bins:
            counts += torch.bincount(each, minlength=len(counts))
        ranks = (counts.cumsum(0) - counts / 2) / counts.sum()
        keep = torch.sigmoid(2 * self.beta * (ranks - self.alpha)).float()
        for ranked, each in zip(self.tensors, bins, strict=True):
            ranked.keep = keep[each].view(ranked.param.shape)
            if self.importance != "random":
                ranked.scores.mul_(self.importance_decay)

    def with_gradient(self) -> Iterable[Ranked]:
        return (each for each in self.tensors if each.param.grad is not None)

    def mask(self, keep: Tensor) -> Tensor:
        """Which elements are kept, bool: each with its probability in 256ths."""
        draws = torch.from_numpy(numpy.frombuffer(self.generator.bytes(keep.numel()), dtype=numpy.uint8).copy())
        return draws.view(keep.shape) < (keep * LEVELS).round_().clamp_(1, LEVELS - 1)

    def mask_gradients(self) -> None:
        """(m / p) g, before the moments: the paper's."""
        for each in self.with_gradient():
            assert each.keep is not None
            assert each.param.grad is not None
            each.param.grad.mul_(self.mask(each.keep)).div_(each.keep.mul(LEVELS).round_().clamp_(min=1).div_(LEVELS))

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the values before a step."""
        for each in self.with_gradient():
            each.before = each.param.detach().clone() if each.before is None else each.before.copy_(each.param)

    @torch.no_grad()
    def select_updates(self, learning_rate: float, *, soft: bool) -> None:
        """Take back what the step just did to elements that are not kept; weight decay stays.

        Args:
            soft: scale the update by the keep probability instead of drawing.
        """
        for each in self.with_gradient():
            assert each.before is not None
            assert each.keep is not None
            decayed = each.before.mul_(1 - learning_rate * each.decay)
            update = each.param.sub_(decayed)
            update.mul_(each.keep if soft else self.mask(each.keep)).add_(decayed)

    @torch.no_grad()
    def pull_back(self, share: float, *, by_rank: bool) -> None:
        """Theta <- theta - share w (theta - theta_0), w = 1 or, by rank, 1 - keep probability (0 before any ranks)."""
        for each in self.tensors:
            assert each.start is not None
            if not by_rank:
                each.param.lerp_(each.start, share)
            elif each.keep is not None:
                each.param.lerp_(each.start, (1 - each.keep).mul_(share))
