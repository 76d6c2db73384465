"""The RoAST step in plain torch: any device, no float64, the definition that every other backend is tested against.

Everything works on chunks of some elements, so temporaries do not grow with the parameter. All functions work in place
on the tensors they are given and never change a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..plan import StepPlan
from ..step import StepOptions, StepRow
from .chunking import CHUNK, chunks
from .draw import FOR_MASKS, FOR_ROUNDING, draw_halves, draw_words, kept, philox4x32, selected_gradient
from .gradient_factor import all_multiplied, multiplied
from .importance import accumulate_importance_, assign_rank_codes_, histogram_
from .roast_adamw import roast_adamw_
from .rounding import stochastically_rounded

__all__ = [
    "CHUNK", "FOR_MASKS", "FOR_ROUNDING", "accumulate_importance_", "activation_kernels", "all_multiplied",
    "assign_rank_codes_", "chunks", "draw_halves", "draw_words", "histogram_", "kept", "multiplied", "philox4x32",
    "plan", "roast_adamw_", "selected_gradient", "stochastically_rounded", "supports", "unavailable",
]  # fmt: skip


def unavailable(device: torch.device | None = None) -> str | None:
    """None: plain torch runs everywhere."""
    return None


def supports(device: torch.device) -> bool:
    """True: plain torch runs on every device."""
    return True


def activation_kernels(*tensors: Tensor) -> None:
    """None: plain torch does it."""


class _Plan(StepPlan):
    """Nothing is prepared: the tensors are used as they are, wherever they lie."""

    def facts_of(self, tensors: Sequence[Tensor]) -> object:
        return [(tensor.shape, tensor.device) for tensor in tensors]

    def fits(self, params: Sequence[Tensor], state: Sequence[Tensor]) -> bool:
        fitting = super().fits(params, state)
        self.check_memory()
        return fitting

    def accumulate(self, grads: Sequence[Tensor], gradient_factor: float | Tensor = 1.0) -> None:
        accumulate_importance_(self.importances(), all_multiplied(grads, gradient_factor))

    def step(self, grads: Sequence[Tensor], options: StepOptions) -> None:
        roast_adamw_(self.rows(grads), options)


def plan(rows: Sequence[StepRow]) -> StepPlan:
    """A plan for many steps with these rows."""
    return _Plan(rows)
