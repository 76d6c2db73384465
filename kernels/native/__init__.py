"""The RoAST step on CPUs: C++ for AVX-512, AVX2 or any processor, built by setup.py, without torch's headers.

Masks, importance and rank codes are those of :mod:`..reference`, bit for bit; parameters and moments are those of AdamW
in float32, each rounded once to its dtype. A first moment below the smallest normal float32 becomes zero. Results do
not depend on the number of threads.

Native are float32 and bfloat16 parameters with gradients of the same dtype and moments of either. Whatever else the
reference takes (other dtypes, tensors that are not contiguous or overlap, ``capturable``) goes there.
"""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import reference
from ..backend import HISTOGRAM_BINS, RANK_CODES, Placement, Selection
from .library import Step, instruction_set, loaded, threads, unavailable, use_instruction_set
from .tensor_lists import DTYPES, addresses, parts, pointer, sizes, sizes_and_addresses, succeeded

__all__ = [
    "accumulate_importance_",
    "assign_rank_codes_",
    "histogram_",
    "instruction_set",
    "roast_adamw_",
    "supports",
    "unavailable",
    "use_instruction_set",
]


def supports(device: torch.device) -> bool:
    """Whether tensors on ``device`` can be given to this backend: those on the CPU."""
    return device.type == "cpu"


# ---------------------------------------------------------------------------------------------------------------- step


class _StepPlan(NamedTuple):
    """Sizes and addresses of the tensors of a step, in the order of Step's fields, and their dtypes as numbers."""

    lists: list[array[int]]
    param_dtype: int
    moment_dtype: int


def roast_adamw_(
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
    """One step, in place; see :func:`..reference.roast_adamw_`.

    Raises:
        ValueError: lists of unequal length; a seed, draw number, threshold, factor, placement or step count out of
            range.
    """
    lists: list[list[Any]] = [params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps]
    lists += [importances, rank_codes, placements]
    used = [True, True, True, True, amsgrad, True, accumulate, selection is not None, selection is not None]
    lists = [entries if use else [] for entries, use in zip(lists, used, strict=True)]
    lengths = [len(entries) for entries, use in zip(lists, used, strict=True) if use]
    if set(lengths) != {len(params)}:
        raise ValueError(f"roast_adamw_ takes lists of equal length, one entry per parameter; these have {lengths}")
    options: dict[str, Any] = {
        "lr": lr,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "weight_decay": weight_decay,
        "amsgrad": amsgrad,
        "maximize": maximize,
        "capturable": capturable,
        "accumulate": accumulate,
        "selection": selection,
    }
    if capturable:
        reference.roast_adamw_(*lists, **options)
        return
    for plan, part in parts(_plan_step, lists):
        if plan is None or not _native_step(plan, part, options):
            reference.roast_adamw_(*part, **options)


def _plan_step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    importances: list[Tensor],
    rank_codes: list[Tensor],
    _: list[Placement],
) -> _StepPlan | None:
    dtype, moment_dtype = params[0].dtype, exp_avgs[0].dtype
    if dtype not in DTYPES or moment_dtype not in DTYPES or any(grad.is_neg() for grad in grads):
        return None
    numel, ones = sizes(params), array("q", [1]) * len(params)
    lists = [numel]
    for tensors, expected_dtype, expected_sizes in (
        (params, dtype, numel),
        (grads, dtype, numel),
        (exp_avgs, moment_dtype, numel),
        (exp_avg_sqs, moment_dtype, numel),
        (max_exp_avg_sqs, moment_dtype, numel),
        (state_steps, torch.float32, ones),
        (importances, torch.float32, numel),
        (rank_codes, torch.uint8, numel),
    ):
        found = addresses(tensors, expected_dtype, expected_sizes)
        if found is None:
            return None
        lists.append(found)
    return _StepPlan(lists, DTYPES[dtype], DTYPES[moment_dtype])


def _native_step(plan: _StepPlan, lists: list[list[Any]], options: dict[str, Any]) -> bool:
    """Whether the library took the step; False: nothing was changed, the reference must."""
    placements = [array("q", field) for field in zip(*lists[-1], strict=True)] or [array("q")] * len(Placement._fields)
    selection: Selection | None = options["selection"]
    step = Step(
        len(plan.lists[0]),
        *map(pointer, plan.lists),
        *map(pointer, placements),
        *((None, None, 0, -1) if selection is None else _selection_fields(selection)),
        *(float(options[name]) for name in ("lr", "beta1", "beta2", "eps", "weight_decay")),
        options["maximize"],
        plan.param_dtype,
        plan.moment_dtype,
        threads(),
    )
    if not succeeded(loaded().roast_adamw(step)):
        return False
    increment_version(lists[0])  # as every in-place operation of torch does, for autograd to notice
    return True


def _selection_fields(selection: Selection) -> tuple[int, int, int, int]:
    """The fields of Step from thresholds to draw_number."""
    tables: list[int] = []
    for name, dtype in (("thresholds", torch.int64), ("rescaling", torch.float32)):
        found = addresses([getattr(selection, name)], dtype, [RANK_CODES])
        if found is None:
            raise ValueError(
                f"selection.{name} must be a contiguous {dtype} tensor of {RANK_CODES} elements on the CPU"
            )
        tables += found
    if not 0 <= selection.seed < 2**64:
        raise ValueError(f"selection.seed={selection.seed} must lie in [0, 2**64)")
    if selection.draw_number is None:
        return tables[0], tables[1], selection.seed, -1
    if not 0 <= selection.draw_number < 2**32:
        raise ValueError(f"selection.draw_number={selection.draw_number} must lie in [0, 2**32)")
    return tables[0], tables[1], selection.seed, selection.draw_number


# ---------------------------------------------------------------------------------------------------------- importance


def accumulate_importance_(importances: list[Tensor], grads: list[Tensor]) -> None:
    """Add the squared gradients to the importance scores, in place; see :func:`..reference.accumulate_importance_`."""

    def plan(importances: list[Tensor], grads: list[Tensor]) -> list[array[int]] | None:
        if grads[0].dtype not in DTYPES or any(grad.is_neg() for grad in grads):
            return None
        return sizes_and_addresses((importances, torch.float32), (grads, grads[0].dtype))

    for lists, (scores, gradients) in parts(plan, [importances, grads]):
        if lists is not None:
            arguments = (len(scores), *map(pointer, lists), DTYPES[gradients[0].dtype], threads())
            if succeeded(loaded().roast_accumulate(*arguments)):
                continue
        reference.accumulate_importance_(scores, gradients)


def histogram_(scores: list[Tensor], counts: Tensor) -> None:
    """Add the number of scores in each of the 65,536 bins to ``counts``; see :func:`..reference.histogram_`."""
    bins = addresses([counts], torch.int64, [HISTOGRAM_BINS])

    def plan(scores: list[Tensor]) -> list[array[int]] | None:
        return sizes_and_addresses((scores, torch.float32))

    for lists, (part,) in parts(plan, [scores]):
        if lists is not None and bins is not None:
            arguments = (len(part), *map(pointer, lists), bins[0], threads())
            if succeeded(loaded().roast_histogram(*arguments)):
                continue
        reference.histogram_(part, counts)


def assign_rank_codes_(importances: list[Tensor], rank_codes: list[Tensor], table: Tensor) -> None:
    """Write ``table[bin]`` into the rank codes and reset the importance scores to zero."""
    codes = addresses([table], torch.uint8, [HISTOGRAM_BINS])

    def plan(importances: list[Tensor], rank_codes: list[Tensor]) -> list[array[int]] | None:
        return sizes_and_addresses((importances, torch.float32), (rank_codes, torch.uint8))

    for lists, (scores, ranks) in parts(plan, [importances, rank_codes]):
        if lists is not None and codes is not None:
            arguments = (len(scores), *map(pointer, lists), codes[0], threads())
            if succeeded(loaded().roast_assign_codes(*arguments)):
                continue
        reference.assign_rank_codes_(scores, ranks, table)
