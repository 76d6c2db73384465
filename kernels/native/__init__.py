"""The RoAST step on CPUs: C++ for AVX-512, AVX2 or any processor, built by setup.py, without torch's headers.

Masks, importance and rank codes are those of :mod:`..reference`, bit for bit; parameters and moments are those of AdamW in
float32, each rounded once to its dtype. A first moment below the smallest normal float32 becomes zero. Results do not
depend on the number of threads.

Native are float32 and bfloat16 parameters with gradients of the same dtype and moments of either. Whatever else the
reference takes (other dtypes, tensors that are not contiguous or overlap, ``capturable``) goes there.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import reference
from ..backend import HISTOGRAM_BINS, RANK_CODES, Placement, Selection
from .library import Step, instruction_set, library, threads, unavailable, use_instruction_set

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

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # Dtype in kernels.h
_UNSUITABLE = b"unsuitable tensors"  # checks.h


def supports(device: torch.device) -> bool:
    """Whether tensors on ``device`` can be given to this backend: those on the CPU."""
    return device.type == "cpu"


# ---------------------------------------------------------------------------------------------------------------- step


class _StepPlan(NamedTuple):
    """What the kernels need to know about all tensors of a step."""

    numel: array[int]
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
        ValueError: lists of unequal length; a seed, draw number, threshold, factor, placement or step count out of range.
    """
    lists = {
        "params": params,
        "grads": grads,
        "exp_avgs": exp_avgs,
        "exp_avg_sqs": exp_avg_sqs,
        "max_exp_avg_sqs": max_exp_avg_sqs if amsgrad else [],
        "state_steps": state_steps,
        "importances": importances if accumulate else [],
        "rank_codes": rank_codes if selection is not None else [],
        "placements": placements if selection is not None else [],
    }
    optional = {"max_exp_avg_sqs": amsgrad, "importances": accumulate, "rank_codes": selection, "placements": selection}
    for name, entries in lists.items():
        if len(entries) != len(params) and optional.get(name, True):
            raise ValueError(f"{name} has {len(entries)} entries, params {len(params)}: give one for each parameter")
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
    plan = (lambda *_: None) if capturable else _plan_step
    for part_plan, part in _parts(plan, list(lists.values())):
        if part_plan is None or not _native_step(part_plan, part, options):
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
    if dtype not in _DTYPES or moment_dtype not in _DTYPES or any(map(Tensor.is_neg, grads)):
        return None
    numel = _numel(params)
    expected = (
        (params, dtype),
        (grads, dtype),
        (exp_avgs, moment_dtype),
        (exp_avg_sqs, moment_dtype),
        (max_exp_avg_sqs, moment_dtype),
        (importances, torch.float32),
        (rank_codes, torch.uint8),
    )
    if not all(_are_plain(tensors, dtype, numel) for tensors, dtype in expected if tensors):
        return None
    if not _are_plain(state_steps, torch.float32, array("q", [1]) * len(params)):
        return None
    return _StepPlan(numel, _DTYPES[dtype], _DTYPES[moment_dtype])


def _native_step(plan: _StepPlan, lists: list[list[Any]], options: dict[str, Any]) -> bool:
    *tensor_lists, placements = lists
    addresses = [_addresses(tensors) for tensors in tensor_lists]
    positions = [array("q", column) for column in zip(*placements, strict=True)] or [array("q")] * 4
    selection: Selection | None = options["selection"]
    table = (None, None, 0, -1) if selection is None else _selection_arguments(selection)
    step = Step(
        len(plan.numel),
        *map(_pointer, (plan.numel, *addresses, *positions)),
        *table,
        *(float(options[name]) for name in ("lr", "beta1", "beta2", "eps", "weight_decay")),
        options["maximize"],
        plan.param_dtype,
        plan.moment_dtype,
        threads(),
    )
    if not _done(library().roast_adamw(step)):
        return False
    increment_version(lists[0])
    return True


def _selection_arguments(selection: Selection) -> tuple[int, int, int, int]:
    """Thresholds, rescaling, seed and draw number as fields of Step."""
    one_per_code = array("q", [RANK_CODES])
    for name, dtype in (("thresholds", torch.int64), ("rescaling", torch.float32)):
        if not _are_plain([getattr(selection, name)], dtype, one_per_code):
            raise ValueError(f"selection.{name} must be a contiguous {dtype} tensor of {RANK_CODES} elements on the CPU")
    if not 0 <= selection.seed < 2**64:
        raise ValueError(f"selection.seed={selection.seed} must lie in [0, 2**64)")
    draw_number = -1 if selection.draw_number is None else selection.draw_number
    if selection.draw_number is not None and not 0 <= draw_number < 2**32:
        raise ValueError(f"selection.draw_number={draw_number} must lie in [0, 2**32)")
    return selection.thresholds.data_ptr(), selection.rescaling.data_ptr(), selection.seed, draw_number


# ---------------------------------------------------------------------------------------------------------- importance


def accumulate_importance_(importances: list[Tensor], grads: list[Tensor]) -> None:
    """Add the squared gradients to the importance scores, in place; see :func:`..reference.accumulate_importance_`."""

    def plan(importances: list[Tensor], grads: list[Tensor]) -> tuple[array[int], int] | None:
        numel, dtype = _numel(importances), grads[0].dtype
        if dtype not in _DTYPES or any(map(Tensor.is_neg, grads)):
            return None
        plain = _are_plain(importances, torch.float32, numel) and _are_plain(grads, dtype, numel)
        return (numel, _DTYPES[dtype]) if plain else None

    for part_plan, part in _parts(plan, [importances, grads]):
        if part_plan is not None:
            numel, dtype = part_plan
            score_addresses, grad_addresses = map(_addresses, part)
            message = library().roast_accumulate(
                len(numel), _pointer(numel), _pointer(score_addresses), _pointer(grad_addresses), dtype, threads()
            )
            if _done(message):
                continue
        reference.accumulate_importance_(*part)


def histogram_(scores: list[Tensor], counts: Tensor) -> None:
    """Add the number of scores in each of the 65,536 bins to ``counts``; see :func:`..reference.histogram_`."""
    countable = _are_plain([counts], torch.int64, array("q", [HISTOGRAM_BINS]))

    def plan(scores: list[Tensor]) -> array[int] | None:
        numel = _numel(scores)
        return numel if countable and _are_plain(scores, torch.float32, numel) else None

    for numel, (part,) in _parts(plan, [scores]):
        if numel is not None:
            addresses = _addresses(part)
            message = library().roast_histogram(
                len(numel), _pointer(numel), _pointer(addresses), counts.data_ptr(), threads()
            )
            if _done(message):
                continue
        reference.histogram_(part, counts)


def assign_rank_codes_(importances: list[Tensor], rank_codes: list[Tensor], table: Tensor) -> None:
    """Write ``table[bin]`` into the rank codes and reset the importance scores to zero."""
    usable = _are_plain([table], torch.uint8, array("q", [HISTOGRAM_BINS]))

    def plan(importances: list[Tensor], rank_codes: list[Tensor]) -> array[int] | None:
        numel = _numel(importances)
        plain = _are_plain(importances, torch.float32, numel) and _are_plain(rank_codes, torch.uint8, numel)
        return numel if usable and plain else None

    for numel, part in _parts(plan, [importances, rank_codes]):
        if numel is not None:
            score_addresses, code_addresses = map(_addresses, part)
            message = library().roast_assign_codes(
                len(numel), _pointer(numel), _pointer(score_addresses), _pointer(code_addresses), table.data_ptr(), threads()
            )
            if _done(message):
                continue
        reference.assign_rank_codes_(*part, table)


# ------------------------------------------------------------------------------------------------------- lists of tensors

_Plan = TypeVar("_Plan")

_dtype = attrgetter("dtype")
_is_cpu = attrgetter("is_cpu")


def _parts(plan: Callable[..., _Plan | None], lists: list[list[Any]]) -> Iterator[tuple[_Plan | None, list[list[Any]]]]:
    """Parts of parallel lists whose tensors are treated alike, each with its plan; None: by the reference.

    Usually that is everything at once. Else each entry is planned, and those with equal dtypes stay together.
    """
    if not lists[0]:
        return
    whole = plan(*lists)
    if whole is not None:
        yield whole, lists
        return
    alike: dict[Any, list[int]] = {}
    for i in range(len(lists[0])):
        entry = [entries[i : i + 1] for entries in lists]
        dtypes = tuple(tensors[0].dtype for tensors in entry if tensors and isinstance(tensors[0], Tensor))
        alike.setdefault(None if plan(*entry) is None else dtypes, []).append(i)
    for dtypes, indices in alike.items():
        part = [[entries[i] for i in indices] if entries else [] for entries in lists]
        yield (None if dtypes is None else plan(*part)), part


def _numel(tensors: list[Tensor]) -> array[int]:
    return array("q", map(Tensor.numel, tensors))


def _are_plain(tensors: list[Tensor], dtype: torch.dtype, numel: array[int]) -> bool:
    """Whether all are on the CPU, contiguous, of that dtype and of these sizes."""
    return (
        set(map(_dtype, tensors)) == {dtype}
        and all(map(_is_cpu, tensors))
        and all(map(Tensor.is_contiguous, tensors))
        and _numel(tensors) == numel
    )


def _addresses(tensors: list[Tensor]) -> array[int]:
    return array("q", map(Tensor.data_ptr, tensors))


def _pointer(numbers: array[int]) -> int | None:
    """Address of the numbers, which must be kept; None if there are none."""
    return numbers.buffer_info()[0] if numbers else None


def _done(message: bytes | None) -> bool:
    """Whether the library did it; False: the tensors do not suit it.

    Raises:
        ValueError: an argument that no backend can take.
        MemoryError: no memory for the addresses.
    """
    if message is None or message == _UNSUITABLE:
        return message is None
    raise (MemoryError if message == b"out of memory" else ValueError)(f"native backend: {message.decode()}")
