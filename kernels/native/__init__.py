"""The RoAST step on CPUs: C++ for AVX-512, AVX2 or any processor, built by setup.py, without torch's headers.

Masks, importance and rank codes are those of :mod:`..reference`, bit for bit; parameters and moments are those of AdamW in
float32, each rounded once to its dtype. A first moment below the smallest normal float32 becomes zero. Results do not
depend on the number of threads.

Native are float32 and bfloat16 parameters with gradients of the same dtype and moments of either. Whatever else the
reference takes (other dtypes, tensors that are not contiguous or overlap, ``capturable``) goes there.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
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
    """Sizes and addresses of the tensors of a step, and their dtypes as numbers."""

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
    if dtype not in _DTYPES or moment_dtype not in _DTYPES or any(grad.is_neg() for grad in grads):
        return None
    numel = _numel(params)
    lists = [numel]
    for tensors, expected_dtype, expected_numel in (
        (params, dtype, numel),
        (grads, dtype, numel),
        (exp_avgs, moment_dtype, numel),
        (exp_avg_sqs, moment_dtype, numel),
        (max_exp_avg_sqs, moment_dtype, numel),
        (state_steps, torch.float32, array("q", [1]) * len(params)),
        (importances, torch.float32, numel),
        (rank_codes, torch.uint8, numel),
    ):
        addresses = _addresses(tensors, expected_dtype, expected_numel)
        if addresses is None:
            return None
        lists.append(addresses)
    return _StepPlan(lists, _DTYPES[dtype], _DTYPES[moment_dtype])


def _native_step(plan: _StepPlan, lists: list[list[Any]], options: dict[str, Any]) -> bool:
    positions = [array("q", column) for column in zip(*lists[-1], strict=True)] or [array("q")] * len(Placement._fields)
    selection: Selection | None = options["selection"]
    step = Step(
        len(plan.lists[0]),
        *map(_pointer, plan.lists),
        *map(_pointer, positions),
        *((None, None, 0, -1) if selection is None else _selection_arguments(selection)),
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
    tables = []
    for name, dtype in (("thresholds", torch.int64), ("rescaling", torch.float32)):
        addresses = _addresses([getattr(selection, name)], dtype, [RANK_CODES])
        if addresses is None:
            raise ValueError(f"selection.{name} must be a contiguous {dtype} tensor of {RANK_CODES} elements on the CPU")
        tables += addresses
    if not 0 <= selection.seed < 2**64:
        raise ValueError(f"selection.seed={selection.seed} must lie in [0, 2**64)")
    draw_number = -1 if selection.draw_number is None else selection.draw_number
    if selection.draw_number is not None and not 0 <= draw_number < 2**32:
        raise ValueError(f"selection.draw_number={draw_number} must lie in [0, 2**32)")
    return tables[0], tables[1], selection.seed, draw_number


# ---------------------------------------------------------------------------------------------------------- importance


def accumulate_importance_(importances: list[Tensor], grads: list[Tensor]) -> None:
    """Add the squared gradients to the importance scores, in place; see :func:`..reference.accumulate_importance_`."""

    def plan(importances: list[Tensor], grads: list[Tensor]) -> list[array[int]] | None:
        dtype = grads[0].dtype
        if dtype not in _DTYPES or any(grad.is_neg() for grad in grads):
            return None
        return _plan((importances, torch.float32), (grads, dtype))

    for lists, part in _parts(plan, [importances, grads]):
        if lists is None or not _done(
            library().roast_accumulate(
                len(lists[0]), *map(_pointer, lists), _DTYPES[part[1][0].dtype], threads()
            )
        ):
            reference.accumulate_importance_(*part)


def histogram_(scores: list[Tensor], counts: Tensor) -> None:
    """Add the number of scores in each of the 65,536 bins to ``counts``; see :func:`..reference.histogram_`."""
    bins = _addresses([counts], torch.int64, [HISTOGRAM_BINS])

    def plan(scores: list[Tensor]) -> list[array[int]] | None:
        return _plan((scores, torch.float32))

    for lists, (part,) in _parts(plan, [scores]):
        if lists is None or bins is None or not _done(
            library().roast_histogram(len(lists[0]), *map(_pointer, lists), bins[0], threads())
        ):
            reference.histogram_(part, counts)


def assign_rank_codes_(importances: list[Tensor], rank_codes: list[Tensor], table: Tensor) -> None:
    """Write ``table[bin]`` into the rank codes and reset the importance scores to zero."""
    codes = _addresses([table], torch.uint8, [HISTOGRAM_BINS])

    def plan(importances: list[Tensor], rank_codes: list[Tensor]) -> list[array[int]] | None:
        return _plan((importances, torch.float32), (rank_codes, torch.uint8))

    for lists, part in _parts(plan, [importances, rank_codes]):
        if lists is None or codes is None or not _done(
            library().roast_assign_codes(len(lists[0]), *map(_pointer, lists), codes[0], threads())
        ):
            reference.assign_rank_codes_(*part, table)


# ------------------------------------------------------------------------------------------------------- lists of tensors

_Plan = TypeVar("_Plan")


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


def _plan(*expected: tuple[list[Tensor], torch.dtype]) -> list[array[int]] | None:
    """Sizes, and addresses of the tensors of each list; None unless all are as :func:`_addresses` wants them."""
    numel = _numel(expected[0][0])
    lists = [numel]
    for tensors, dtype in expected:
        addresses = _addresses(tensors, dtype, numel)
        if addresses is None:
            return None
        lists.append(addresses)
    return lists


def _numel(tensors: list[Tensor]) -> array[int]:
    return array("q", [tensor.numel() for tensor in tensors])


def _addresses(tensors: list[Tensor], dtype: torch.dtype, numel: Sequence[int]) -> array[int] | None:
    """Addresses of the tensors; None unless all are on the CPU, contiguous, of that dtype and of these sizes."""
    addresses = [
        tensor.data_ptr()
        for tensor, size in zip(tensors, numel)
        if tensor.dtype is dtype and tensor.is_cpu and tensor.is_contiguous() and tensor.numel() == size
    ]
    return array("q", addresses) if len(addresses) == len(tensors) else None


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
