"""Shares of kept elements: what the keep probabilities promise and what the last draw did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .kernels.step import RANK_CODES, Position, draw_number_of
from .masking import keep_mask, keep_probabilities
from .options import GROUP_COUNTERS
from .sharding import all_reduced, local, shard_groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Groups = Sequence[dict[str, Any]]
StateOf = Mapping[Tensor, dict[str, Any]]


def selection_stats(
    param_groups: Groups, state: StateOf, positions: Mapping[Tensor, Position], mask_schedule: str
) -> dict[str, Any]:
    """See :meth:`.optimizer.RoastAdamW.selection_stats`."""
    groups = [_group_stats(group, state, positions, mask_schedule) for group in param_groups]
    elements = sum(stats["elements"] for stats in groups)
    whole: dict[str, Any] = {"elements": elements}
    for share in ("expected_share", "realised_share"):
        weighted = sum(stats[share] * stats["elements"] for stats in groups if stats["elements"])
        whole[share] = weighted / elements if elements else 1.0
    for counter in GROUP_COUNTERS:
        whole[counter] = max(group[counter] for group in param_groups)
    return {**whole, "groups": groups}


def _group_stats(
    group: dict[str, Any], state: StateOf, positions: Mapping[Tensor, Position], mask_schedule: str
) -> dict[str, Any]:
    stats: dict[str, Any] = {counter: group[counter] for counter in GROUP_COUNTERS}
    stats["elements"] = sum(param.numel() for param in group["params"])
    ranked = [param for param in group["params"] if "rank_code" in state.get(param, {})]
    total = sum(param.numel() for param in ranked)
    if not group["selective"] or group["refreshes"] == 0 or total == 0:
        return {**stats, "expected_share": 1.0, "realised_share": 1.0}

    alpha, beta, per_refresh = group["alpha"], group["beta"], mask_schedule == "refresh"
    sums: dict[tuple[torch.device, tuple[ProcessGroup, ...]], Tensor] = {}  # expected and realised number of elements
    for param in ranked:
        codes = local(state[param]["rank_code"])
        per_code = torch.bincount(codes.reshape(-1), minlength=RANK_CODES).cpu().double()
        mask = keep_mask(
            codes,
            alpha,
            beta,
            seed=group["seed"],
            draw_number=group["refreshes"] if per_refresh else draw_number_of(float(state[param]["step"])),
            position=positions[param],
        )
        kept = torch.stack([per_code @ keep_probabilities(alpha, beta), mask.sum().cpu().double()])
        key = (param.device, shard_groups(param))
        sums[key] = sums.get(key, 0) + kept
    for (device, processes), kept in sums.items():
        sums[device, processes] = all_reduced(kept.to(device), processes).cpu()
    expected, realised = torch.stack(list(sums.values())).sum(0).tolist()
    drawn = per_refresh or group["steps_since_refresh"] > 0
    return {**stats, "expected_share": expected / total, "realised_share": realised / total if drawn else math.nan}
