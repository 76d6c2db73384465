"""What every backend of the fused RoAST step takes and offers, and the table of backends.

A backend is a module with the functions of :class:`Backend`. All of them compute the same masks bit for bit and the
same values up to rounding; :mod:`.reference` is the one that defines them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from .plan import StepPlan
from .step import StepOptions, StepRow


class ActivationKernels(Protocol):
    """Fused kernels on activations, for the adversary. What they compute is defined in ``roast_optim``, in torch."""

    def perturbed_embedding(
        self,
        embedding: Tensor,
        gradient: Tensor,
        step_size: float,
        norm: str,
        *,
        tokens: Tensor | None = None,
        sample_dim: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """See :func:`roast_optim.perturbation.perturbed_embedding`; of three dimensions."""

    def symmetric_kl_rows(self, logits_p: Tensor, logits_q: Tensor, counted: Tensor | None = None) -> Tensor:
        """The terms that :func:`roast_optim.losses.symmetric_kl` averages, one per distribution."""


class Backend(Protocol):
    """The functions of a backend module. Lists are of equal length, one entry per parameter."""

    def unavailable(self, device: torch.device | None = None) -> str | None:
        """Why this backend cannot run in this process, and what to do about it; None when it can.

        With a GPU as ``device`` it is tried there, once per GPU. Without one nothing is started there.
        """

    def supports(self, device: torch.device) -> bool:
        """Whether tensors on ``device`` can be given to this backend."""

    def plan(self, rows: Sequence[StepRow]) -> StepPlan:
        """Prepare many steps with rows that lie on one device and have the same tensors."""

    def roast_adamw_(self, rows: Sequence[StepRow], options: StepOptions) -> None:
        """One step, in place; see :func:`.reference.roast_adamw_`."""

    def accumulate_importance_(self, importances: list[Tensor], grads: list[Tensor]) -> None:
        """Add the squared gradients to the importance scores, in place."""

    def histogram_(self, scores: list[Tensor], counts: Tensor) -> None:
        """Add the number of scores in each of the 65,536 bins to ``counts`` (int64 ``[65536]``)."""

    def assign_rank_codes_(self, importances: list[Tensor], rank_codes: list[Tensor], table: Tensor) -> None:
        """Write ``table[bin]`` (uint8 ``[65536]``) into the rank codes and reset the importance scores to zero."""

    def activation_kernels(self, *tensors: Tensor) -> ActivationKernels | None:
        """Fused kernels that can take these activations; None where plain torch is as fast or the only way."""


_MODULES = {"triton": ".triton", "native": ".native", "reference": ".reference"}
BACKEND_NAMES = tuple(_MODULES)


def load_backend(name: str) -> Backend:
    """The backend module of that name; importing it needs neither a GPU, nor triton, nor a compiler."""
    return cast(Backend, importlib.import_module(_MODULES[name], __package__))
