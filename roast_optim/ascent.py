"""The ascent: from the embeddings of a batch to perturbed ones, in one step or in several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .adversary_draws import AdversaryDraws
from .perturbation import noise_step, perturbed_embedding, row_lengths

# For embeddings e, direction d(e) (the gradient of a loss), n steps and a start of noise:
#
#     x_0 = e,    x_{k+1} = x_k + (step_size / n) d_k / |d_k|,    d_k = d(x_k + noise),    e_adv = x_n


@dataclass(frozen=True)
class Ascent:
    """How embeddings are moved.

    Attributes:
        step_size: of the whole, in units of ``scale``.
        norm, scale: as in :func:`.perturbation.perturbed_embedding`.
        ascents: number of steps.
        start_noise: amplitude of the noise beside which every gradient is taken; 0: none.
        direction: "task", "consistency" or "noise".
    """

    step_size: float
    norm: str
    scale: str
    ascents: int
    start_noise: float
    direction: str

    @property
    def needs_clean_gradient(self) -> bool:
        """Whether the first gradient is that of the clean pass."""
        return self.direction == "task" and not self.start_noise

    def of_noise(self, embeddings: Tensor, draws: AdversaryDraws, tokens: Tensor | None) -> Tensor:
        """The embeddings, moved at random.

        Args:
            embeddings: ``[.., .., hidden]``.
            draws: of the call.
            tokens: boolean, of the first two dimensions: which are moved; None: all.
        """
        step = noise_step(
            embeddings, draws.noise(embeddings), self.step_size, self.norm, scale=self.scale, tokens=tokens
        )
        return (embeddings + step).to(embeddings.dtype)

    def along_gradients(
        self,
        embeddings: Tensor,
        first_gradient: Tensor | None,
        gradient_at: Callable[[Tensor, Tensor], Tensor],
        draws: AdversaryDraws,
        *,
        tokens: Tensor | None,
        sample_dim: int,
    ) -> tuple[Tensor, Tensor]:
        """The embeddings, moved along gradients.

        Args:
            embeddings: ``[batch, tokens, hidden]`` or ``[tokens, batch, hidden]``.
            first_gradient: at the embeddings, if it is known.
            gradient_at: returns the gradient at the sum of two tensors: where the ascent is, and noise or zero.
            draws: of the call.
            tokens, sample_dim: as in :func:`.perturbation.perturbation`.

        Returns:
            The perturbed embeddings, in their dtype, and how many samples had a gradient that was not finite, over all
            steps: a scalar, int64. Such a sample is not moved in that step.
        """
        lengths = row_lengths(embeddings) if self.scale == "relative" else None
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        # Several steps are added up in float32, and rounded once.
        moved = embeddings if self.ascents == 1 else embeddings.to(wide)
        nonfinite = torch.zeros((), dtype=torch.int64, device=embeddings.device)
        for number in range(self.ascents):
            gradient = first_gradient if number == 0 else None
            if gradient is None:
                gradient = gradient_at(moved, self._start(embeddings, draws, wide))
            moved, more = perturbed_embedding(
                moved,
                gradient,
                self.step_size / self.ascents,
                self.norm,
                scale=self.scale,
                lengths=lengths,
                tokens=tokens,
                sample_dim=sample_dim,
            )
            nonfinite = nonfinite + more
        return moved.to(embeddings.dtype), nonfinite

    def _start(self, embeddings: Tensor, draws: AdversaryDraws, dtype: torch.dtype) -> Tensor:
        """A new leaf: the noise of the call, the same for all steps."""
        if not self.start_noise:
            return torch.zeros_like(embeddings, dtype=dtype)
        return draws.start_noise(embeddings, self.start_noise, both_signs=self.direction == "consistency")
