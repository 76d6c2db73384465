"""Percentile ranks of the importance scores, across tensors and across processes.

A score's rank is the share of all scores below it plus half the share equal to it (mid-rank). Scores that agree in the
upper 17 bits of their float32 pattern (closer than 0.4%; in bfloat16, which has 16 of them, 0.8%) count as equal. Two
passes over the scores and a histogram of 512 KB replace a sort, and the histograms of several processes simply add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .kernels import reference
from .kernels.backend import Backend
from .kernels.step import HISTOGRAM_BINS, RANK_CODES, Position
from .sharding import all_reduced, local, shard_groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass
class RankedTensors:
    """Local tensors on one device that are spread over the same process groups; parallel lists."""

    backend: Backend
    device: torch.device
    groups: tuple[ProcessGroup, ...]
    importances: list[Tensor] = field(default_factory=list)
    rank_codes: list[Tensor] = field(default_factory=list)


class RankedParts:
    """What is ranked together: the tensors of many parameters, by device and by the processes that share them."""

    def __init__(self) -> None:
        self._parts: dict[tuple[torch.device, tuple[ProcessGroup, ...]], RankedTensors] = {}

    def add(self, param: Tensor, state: Mapping[str, Tensor], backend: Backend) -> None:
        """Add the importance and the rank codes of a parameter, which are in its state."""
        place = param.device, shard_groups(param)
        if place not in self._parts:
            self._parts[place] = RankedTensors(backend, *place)
        self._parts[place].importances.append(local(state["importance"]))
        self._parts[place].rank_codes.append(local(state["rank_code"]))

    def tensors(self) -> list[RankedTensors]:
        """The parts, in the order in which they came."""
        return list(self._parts.values())


def rank_code_table(histogram: Tensor) -> Tensor:
    """The rank code of each bin: min(255, 256 * (2 * below + count) // (2 * n)); uint8 ``[65536]``.

    Args:
        histogram: int64 ``[65536]``, number of scores per bin, in all tensors and processes.
    """
    total = histogram.sum().clamp_(min=1)
    below = histogram.cumsum(0).sub_(histogram)
    # In place: each further copy would be as large as the histogram.
    codes = below.mul_(2).add_(histogram).mul_(RANK_CODES).div_(2 * total, rounding_mode="floor")
    return codes.clamp_(max=RANK_CODES - 1).to(torch.uint8)


def refresh_rank_codes(
    parts: list[RankedTensors],
    process_group: ProcessGroup | None,
    device: torch.device,
    count: Callable[[bool], None],
) -> bool:
    """Rank all elements of all parts and processes together, write their rank codes, reset their importance to zero.

    Until the first rank code is written an interruption leaves everything as it was; after that, what is left is
    finished before the exception goes on: a score that is zero already would be ranked lowest another time.

    Args:
        parts: the same number, with the same groups, in every process.
        process_group: processes that hold different parameters (pipeline stages), or None.
        device: on which a process without parts takes part in what the others send.
        count: told that the refresh is done, and whether anything was ranked.

    Returns:
        False if every score lies in the lowest bin: nothing was accumulated, and the rank codes are not changed.
    """
    histograms = [torch.zeros(HISTOGRAM_BINS, dtype=torch.int64, device=part.device) for part in parts]
    for part, histogram in zip(parts, histograms, strict=True):
        part.backend.histogram_(part.importances, histogram)
        all_reduced(histogram, part.groups)
    total = histograms[0] if histograms else torch.zeros(HISTOGRAM_BINS, dtype=torch.int64, device=device)
    for histogram in histograms[1:]:
        total += histogram.to(total.device)
    if process_group is not None:
        all_reduced(total, [process_group])

    if int(total[0]) == int(total.sum()):
        for part in parts:
            torch._foreach_zero_(part.importances)
        count(False)
        return False
    table = rank_code_table(total)
    tables = [table.to(part.device) for part in parts]
    left = list(zip(parts, tables, strict=True))
    try:
        while left:
            part, own_table = left[0]
            part.backend.assign_rank_codes_(part.importances, part.rank_codes, own_table)
            left.pop(0)
        count(True)
    except BaseException:
        for number, (part, own_table) in enumerate(left):
            # A backend finishes what it has begun, so that scores are left only of a part that it had not.
            if number > 0 or any(bool(score.any()) for score in part.importances):
                part.backend.assign_rank_codes_(part.importances, part.rank_codes, own_table)
        count(True)
        raise
    return True


def percentile_ranks(scores: list[Tensor]) -> list[Tensor]:
    """Rank codes (uint8) of non-negative float32 scores, ranked over all tensors together; the scores are not changed.

    Code c stands for the percentile rank (c + 0.5) / 256.
    """
    counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64, device="cpu")
    reference.histogram_(scores, counts)
    rank_codes = [torch.empty_like(score, dtype=torch.uint8) for score in scores]
    reference.assign_rank_codes_([score.clone() for score in scores], rank_codes, rank_code_table(counts))
    return rank_codes


def fill_scores_(kind: str, scores: Tensor, param: Tensor, seed: int, position: Position) -> None:
    """What is ranked by that option ``importance``, if it does not come from the gradients."""
    if kind == "random":
        _fill_random_scores_(local(scores), seed, position)
    elif kind == "magnitude":
        _fill_magnitude_scores_(local(scores), local(param))


def _fill_random_scores_(scores: Tensor, seed: int, position: Position) -> None:
    """A fixed random score in [0, 1) per element, from the draw with number 0, which no step uses."""
    for start, (chunk,) in reference.chunks([scores]):
        words = reference.draw_words(position, start, chunk.numel(), seed=seed, draw_number=0, device=scores.device)
        chunk.copy_((words >> 8).to(torch.float32).mul_(2.0**-24).view(chunk.shape))


def _fill_magnitude_scores_(scores: Tensor, param: Tensor) -> None:
    """The absolute value of each parameter; NaN counts as zero, infinity as the scores' largest number."""
    largest = torch.finfo(scores.dtype).max
    for _, (chunk, values) in reference.chunks([scores, param]):
        chunk.copy_(values.to(torch.float32).abs().nan_to_num_(nan=0.0).clamp_(max=largest))
