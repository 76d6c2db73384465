"""What every backend of the fused RoAST step takes and offers, and the table of backends.

A backend is a module with the functions of :class:`Backend`. All of them compute the same masks bit for bit and the
same values up to rounding; :mod:`.reference` is the one that defines them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

RANK_CODES = 256
HISTOGRAM_BINS = 65536


class Placement(NamedTuple):
    """Where a local tensor lies in its whole, unsharded, contiguous parameter.

    Local element j (row-major) is element ``first_index + (j // inner_length) * outer_stride + j % inner_length`` of
    the whole parameter. For a parameter that is not sharded ``inner_length`` is its number of elements.

    Attributes:
        parameter_id: index of the parameter in the optimizer's ``state_dict``; third word of the draw's counter.
        first_index: element of the whole parameter at which the local tensor begins.
        inner_length: elements that lie side by side in the whole parameter before a gap; at least 1.
        outer_stride: distance in the whole parameter between the beginnings of two such runs.
    """

    parameter_id: int
    first_index: int
    inner_length: int
    outer_stride: int

    @classmethod
    def whole(cls, parameter_id: int, numel: int) -> Placement:
        """The placement of a parameter of ``numel`` elements that is not sharded."""
        return cls(parameter_id, 0, max(numel, 1), 0)


@dataclass(frozen=True)
class Selection:
    """How the masks of one parameter group are drawn in this step.

    Attributes:
        seed: key of the draw, 0 <= seed < 2**64.
        thresholds: int64 ``[256]``, values in [1, 2**32 - 1]: an element with rank code c is kept iff its random word
            is below ``thresholds[c]``.
        rescaling: float32 ``[256]``: the factor of a kept gradient; ones for a selection without rescaling.
        draw_number: fourth word of the counter; None: each parameter's own step count after its increment.
    """

    seed: int
    thresholds: Tensor
    rescaling: Tensor
    draw_number: int | None


class Backend(Protocol):
    """The functions of a backend module. Lists are of equal length, one entry per parameter."""

    def unavailable(self) -> str | None:
        """Why this backend cannot run in this process, and what to do about it; None when it can."""

    def supports(self, device: torch.device) -> bool:
        """Whether tensors on ``device`` can be given to this backend."""

    def roast_adamw_(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
        importances: list[Tensor],
        rank_codes: list[Tensor],
        placements: list[Placement],
        *,
        lr: float | Tensor,
        beta1: float | Tensor,
        beta2: float | Tensor,
        eps: float,
        weight_decay: float,
        amsgrad: bool,
        maximize: bool,
        capturable: bool,
        accumulate: bool,
        selection: Selection | None,
    ) -> None:
        """One step, in place; see :func:`.reference.roast_adamw_`."""

    def accumulate_importance_(self, importances: list[Tensor], grads: list[Tensor]) -> None:
        """Add the squared gradients to the importance scores, in place."""

    def histogram_(self, scores: list[Tensor], counts: Tensor) -> None:
        """Add the number of scores in each of the 65,536 bins to ``counts`` (int64 ``[65536]``)."""

    def assign_rank_codes_(self, importances: list[Tensor], rank_codes: list[Tensor], table: Tensor) -> None:
        """Write ``table[bin]`` (uint8 ``[65536]``) into the rank codes and reset the importance scores to zero."""


_MODULES = {"triton": ".triton", "native": ".native", "reference": ".reference"}
BACKEND_NAMES = tuple(_MODULES)


def load_backend(name: str) -> Backend:
    """The backend module of that name; importing it needs neither a GPU, nor triton, nor a compiler."""
    return cast(Backend, importlib.import_module(_MODULES[name], __package__))
