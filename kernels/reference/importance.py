"""Importance scores of the gradients, their histogram, and the rank codes that it gives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..step import HISTOGRAM_BINS
from .chunking import chunks
from .draw import WORD, philox4x32
from .rounding import is_narrow, stochastically_rounded


def accumulate_importance_(importances: list[Tensor], grads: list[Tensor]) -> None:
    """Add the squared gradients: s <- fl(s + fl(g * g)) in float32, saturating; non-finite gradients add nothing.

    Two roundings: never ``addcmul_``, which is a fused multiply-add on some processors. Scores of bfloat16 are then
    rounded stochastically: to nearest a sum would stand still at 512 times what is added. No step is counted here, so
    the gradient and the score are the counter of the bits.
    """
    for importance, grad in zip(importances, grads, strict=True):
        for _, (score, g) in chunks([importance, grad]):
            bits = None
            if is_narrow(score):
                counter = (g.to(torch.float32), score.to(torch.float32))
                first, second = (each.view(torch.int32).to(torch.int64) & WORD for each in counter)
                bits = torch.as_tensor(philox4x32((first, second, 0, 0), (0, 0))[0]) >> 16
            add_square_(score, g, bits)


def add_square_(score: Tensor, grad: Tensor, bits: Tensor | None) -> None:
    g, largest = grad.to(torch.float32), torch.finfo(score.dtype).max
    square = torch.where(g.isfinite(), g * g, 0.0)
    if is_narrow(score):
        assert bits is not None
        score.copy_(stochastically_rounded((score + square).clamp_(max=largest), bits, score.dtype))
    else:
        score.add_(square).clamp_(max=largest)


def histogram_(scores: list[Tensor], counts: Tensor) -> None:
    """Add the number of scores in each bin to ``counts``; the bin is the upper 17 bits of the float32, its sign zero.

    Bit patterns of non-negative floats are ordered like the floats, so bins are ordered like the scores they hold.
    """
    for score in scores:
        for _, (chunk,) in chunks([score]):
            counts += torch.bincount(_bins(chunk), minlength=HISTOGRAM_BINS).to(counts.device)


def assign_rank_codes_(importances: list[Tensor], rank_codes: list[Tensor], table: Tensor) -> None:
    """Write ``table[bin]`` into the rank codes and reset the importance scores to zero.

    All codes first, then all scores. Whoever interrupts it (Ctrl-C) finds it finished: half of it would leave scores of
    zero without the codes that they stood for.
    """

    def assign() -> None:
        for importance, rank_code in zip(importances, rank_codes, strict=True):
            local_table = table.to(importance.device)
            for _, (score, code) in chunks([importance, rank_code]):
                code.copy_(local_table.index_select(0, _bins(score)).view(code.shape))

    def reset() -> None:
        for importance in importances:
            importance.zero_()

    assigned = False
    try:
        assign()
        assigned = True
        reset()
    except BaseException:
        if not assigned:
            assign()
        reset()
        raise


def _bins(score: Tensor) -> Tensor:
    return score.to(torch.float32).contiguous().view(torch.int32).view(-1) >> 15
