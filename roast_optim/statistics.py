"""Shares of kept elements: what the keep probabilities promise and what the last draw did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .kernels.reference import CHUNK
from .kernels.step import RANK_CODES, Position, draw_number_of
from .masking import keep_mask, keep_mask_of_many, keep_probabilities
from .options import GROUP_COUNTERS
from .sharding import all_reduced, local, shard_groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Groups = Sequence[dict[str, Any]]
StateOf = Mapping[Tensor, dict[str, Any]]


def selection_stats(
    param_groups: Groups, state: StateOf, positions: Mapping[Tensor, Position], mask_schedule: str, *, realised: bool
) -> dict[str, Any]:
    """See :meth:`.optimizer.RoastAdamW.selection_stats`."""
    groups = [_group_stats(group, state, positions, mask_schedule, realised) for group in param_groups]
    elements = sum(stats["elements"] for stats in groups)
    whole: dict[str, Any] = {"elements": elements}
    for share in ("expected_share", "realised_share"):
        weighted = sum(stats[share] * stats["elements"] for stats in groups if stats["elements"])
        whole[share] = weighted / elements if elements else 1.0
    for counter in GROUP_COUNTERS:
        whole[counter] = max(group[counter] for group in param_groups)
    return {**whole, "groups": groups}


def _group_stats(
    group: dict[str, Any], state: StateOf, positions: Mapping[Tensor, Position], mask_schedule: str, realised: bool
) -> dict[str, Any]:
    stats: dict[str, Any] = {counter: group[counter] for counter in GROUP_COUNTERS}
    params = [param for param in group["params"] if param in positions]  # a lazy one has no elements yet
    stats["elements"] = sum(param.numel() for param in params)
    ranked = [param for param in params if "rank_code" in state.get(param, {})]
    total = sum(param.numel() for param in ranked)
    if not group["selective"] or group["refreshes"] == 0 or total == 0:
        return {**stats, "expected_share": 1.0, "realised_share": 1.0}

    drawn = mask_schedule == "refresh" or group["steps_since_refresh"] > 0
    by_place: dict[tuple[torch.device, tuple[ProcessGroup, ...]], list[Tensor]] = {}
    for param in ranked:
        by_place.setdefault((param.device, shard_groups(param)), []).append(param)
    expected = kept = 0.0
    for (device, processes), members in by_place.items():
        sums = torch.zeros(2, dtype=torch.float64, device="cpu")  # expected and realised number of kept elements
        for batch in _batches(members):
            codes = [local(state[param]["rank_code"]) for param in batch]
            joined = codes[0].reshape(-1) if len(codes) == 1 else torch.cat([code.reshape(-1) for code in codes])
            per_code = torch.bincount(joined, minlength=RANK_CODES).cpu().double()
            sums[0] += per_code @ keep_probabilities(group["alpha"], group["beta"])
            if drawn and realised:
                sums[1] += int(_last_mask(group, batch, codes, joined, state, positions, mask_schedule).sum())
        expected_here, kept_here = all_reduced(sums.to(device), processes).tolist()
        expected, kept = expected + expected_here, kept + kept_here
    return {
        **stats,
        "expected_share": expected / total,
        "realised_share": kept / total if drawn and realised else math.nan,
    }


def _last_mask(
    group: dict[str, Any],
    params: list[Tensor],
    codes: list[Tensor],
    joined: Tensor,
    state: StateOf,
    positions: Mapping[Tensor, Position],
    mask_schedule: str,
) -> Tensor:
    """The masks of the last draw, of all parameters side by side."""
    draws = [
        group["refreshes"] if mask_schedule == "refresh" else draw_number_of(float(state[param]["step"]))
        for param in params
    ]
    of_params = [positions[param] for param in params]
    options = {"alpha": group["alpha"], "beta": group["beta"], "seed": group["seed"]}
    if len(params) == 1:
        return keep_mask(codes[0], draw_number=draws[0], position=of_params[0], **options)
    return keep_mask_of_many(joined, [code.numel() for code in codes], draws, of_params, **options)


def _batches(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Small parameters together, so that a thousand of them take one pass; none is cut."""
    batch: list[Tensor] = []
    size = 0
    for param in params:
        numel = local(param).numel()
        if batch and size + numel > CHUNK:
            yield batch
            batch, size = [], 0
        batch.append(param)
        size += numel
    yield batch
