"""What an adversary draws at random in one call: which rows are perturbed, and noise.

Every draw has a generator of its own, whose seed is the number of the call. So the global random state is neither read
nor changed, the number of calls is all that has to be saved, and processes draw alike: those that share a batch must,
and those with batches of their own may.
"""

from __future__ import annotations

import torch
from torch import Tensor

_START, _NOISE, _ROWS = range(3)
_PURPOSES = 3


class AdversaryDraws:
    """The draws of one call.

    Args:
        call: its number, from 0.
    """

    def __init__(self, call: int) -> None:
        self._call = call

    def start_noise(self, embedding: Tensor, amplitude: float, *, both_signs: bool) -> Tensor:
        """Uniform in [0, amplitude), or in [-amplitude, amplitude); of the embedding's shape, at least float32."""
        noise = self._uniform(embedding, _START)
        return noise.mul_(2).sub_(1).mul_(amplitude) if both_signs else noise.mul_(amplitude)

    def noise(self, embedding: Tensor) -> Tensor:
        """Uniform in [-1, 1), of the embedding's shape, at least float32."""
        return self._uniform(embedding, _NOISE).mul_(2).sub_(1)

    def rows(self, count: int, share: float) -> Tensor:
        """The numbers of a share of so many rows, at least one, in order: int64, the same for any device."""
        chosen = max(1, round(share * count))
        order = torch.randperm(count, generator=self._generator(torch.device("cpu"), _ROWS))
        return order[:chosen].sort().values

    def _uniform(self, like: Tensor, purpose: int) -> Tensor:
        return torch.rand(
            like.shape,
            generator=self._generator(like.device, purpose),
            device=like.device,
            dtype=torch.promote_types(like.dtype, torch.float32),
        )

    def _generator(self, device: torch.device, purpose: int) -> torch.Generator:
        return torch.Generator(device).manual_seed(self._call * _PURPOSES + purpose)
