"""The RoAST step on CPUs: C++ for AVX-512, AVX2 or any processor, built by setup.py, without torch's headers.

Masks, importance and rank codes are those of :mod:`..reference`, bit for bit; parameters and moments are those of AdamW
in float32, each rounded once to its dtype. A first moment below the smallest normal float32 becomes zero. Results do
not depend on the number of threads.

Native are float32 and bfloat16 parameters with gradients of the same dtype and moments of either. Whatever else the
reference takes (other dtypes, tensors that are not contiguous or overlap, ``capturable``) goes there.

A plan keeps the addresses of all tensors but the gradients in the form in which the library takes them, checked.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import reference
from ..plan import StepPlan, check_options, gradients, not_contiguous
from ..step import CHOICES, HISTOGRAM_BINS, RANK_CODES, SCALARS, TENSORS, Selection, StepOptions, StepRow
from ..tensor_facts import facts
from .library import Step, instruction_set, loaded, threads, unavailable, use_instruction_set
from .tensor_lists import DTYPES, addresses, parts, pointer, sizes, sizes_and_addresses, succeeded

__all__ = [
    "accumulate_importance_",
    "activation_kernels",
    "assign_rank_codes_",
    "histogram_",
    "instruction_set",
    "plan",
    "roast_adamw_",
    "supports",
    "unavailable",
    "use_instruction_set",
]


def supports(device: torch.device) -> bool:
    """Whether tensors on ``device`` can be given to this backend: those on the CPU."""
    return device.type == "cpu"


def activation_kernels(*tensors: Tensor) -> None:
    """None: plain torch does it."""


# ---------------------------------------------------------------------------------------------------------------- step


def plan(rows: Sequence[StepRow]) -> StepPlan:
    """A plan for many steps with these rows.

    Raises:
        ValueError: rows with different tensors, a position out of range, or memory that was freed.
    """
    return _Plan(rows)


def roast_adamw_(rows: Sequence[StepRow], options: StepOptions) -> None:
    """One step, in place; see :func:`..reference.roast_adamw_`.

    Raises:
        ValueError: rows with different tensors; a seed, draw number, threshold, factor, position or step count out of
            range.
    """
    _Plan(rows).step(gradients(rows), options)


class _Plan(StepPlan):
    """The rows that the library takes, by their dtypes, and those that the reference takes."""

    def __init__(self, rows: Sequence[StepRow]) -> None:
        super().__init__(rows)
        alike: dict[tuple[torch.dtype, ...] | None, list[int]] = {}
        for i, row in enumerate(rows):
            alike.setdefault(_dtypes(row), []).append(i)
        self._by_reference = alike.pop(None, [])
        for i in self._by_reference:
            self._note_what_is_not_contiguous(rows[i])
        self._parts = []
        for indices in alike.values():
            part = _Part([rows[i] for i in indices], indices)
            if part.is_suitable:
                self._parts.append(part)
            else:
                self.note_fallback(_OVERLAP)
                self._by_reference += indices

    def accumulate(self, grads: Sequence[Tensor], gradient_factor: float | Tensor = 1.0) -> None:
        accumulate_importance_(self.importances(), reference.all_multiplied(grads, gradient_factor))

    def step(self, grads: Sequence[Tensor], options: StepOptions) -> None:
        check_options(self.names, options)
        if options.capturable:
            self.note_fallback("capturable=True serves CUDA graphs, which no CPU has: leave it out")
            reference.roast_adamw_(self.rows(grads), options)
            return
        by_reference = list(self._by_reference)
        for part in self._parts:
            own = grads if len(part.indices) == len(grads) else [grads[i] for i in part.indices]
            addresses = part.addresses(own)
            if addresses is None:
                by_reference += self._step_apart(part, grads, options)
            elif not part.step(addresses, options):
                self.note_fallback(_OVERLAP)
                by_reference += part.indices
        if by_reference:
            rows = self.rows(grads)
            reference.roast_adamw_([rows[i] for i in by_reference], options)

    def _step_apart(self, part: _Part, grads: Sequence[Tensor], options: StepOptions) -> list[int]:
        """A step of the rows of which the library can take the gradients; the others are returned."""
        suits = [part.takes(grads[i], number) for number, i in enumerate(part.indices)]
        if any(suits):
            rows = self.rows(grads)
            roast_adamw_([rows[i] for i, suited in zip(part.indices, suits, strict=True) if suited], options)
        apart = [i for i, suited in zip(part.indices, suits, strict=True) if not suited]
        if not all(grads[i].is_contiguous() for i in apart):
            self.note_fallback(not_contiguous("grad"))
        return apart

    def _note_what_is_not_contiguous(self, row: StepRow) -> None:
        # Nothing is said of float64 and float16: on a CPU their arithmetic is what takes the time.
        tensors = row.with_gradient(None).tensors()
        first = next((name for name, tensor in tensors if not tensor.is_contiguous()), None)
        if first is not None and row.param.dtype in DTYPES:
            self.note_fallback(not_contiguous(first))


class _Part:
    """Rows of equal dtypes that the library takes in one call.

    Attributes:
        indices: which rows of the plan they are.
        is_suitable: whether the library can take them: nothing that is written overlaps anything else.
    """

    def __init__(self, rows: list[StepRow], indices: list[int]) -> None:
        self.indices = indices
        self._dtype = rows[0].param.dtype
        self._params = [row.param for row in rows]
        self._numel, found = sizes(self._params), facts(self._params)
        self._kinds, self._sizes = found.kinds, found.sizes
        lists = {name: array("q") for name in TENSORS}
        for row in rows:
            for name, tensor in row.with_gradient(None).tensors():
                lists[name].append(tensor.data_ptr())
        positions = [array("q", numbers) for numbers in zip(*(row.position for row in rows), strict=True)]
        written = array("q", bytes(2 * 8 * len(TENSORS) * len(rows)))
        self._held = (*lists.values(), *positions, written)  # whose memory the call points to
        self._call = Step(
            count=len(rows),
            numel=pointer(self._numel),
            written=pointer(written),
            param_dtype=DTYPES[self._dtype],
            moment_dtype=DTYPES[rows[0].exp_avg.dtype],
            score_dtype=DTYPES[rows[0].score_dtype],
        )
        self._tensors = {name: pointer(addresses) for name, addresses in lists.items()}
        self._call.tensors[:] = [*self._tensors.values()]
        self._call.positions[:] = [pointer(numbers) for numbers in positions]
        self.is_suitable = succeeded(loaded().roast_plan(self._call))

    def takes(self, grad: Tensor, i: int) -> bool:
        """Whether the library can take the gradient of that row."""
        return (
            grad.dtype is self._dtype
            and grad.is_cpu
            and grad.is_contiguous()
            and grad.numel() == self._numel[i]
            and not grad.is_neg()
        )

    def addresses(self, grads: Sequence[Tensor]) -> array[int] | None:
        """Addresses of the gradients; None if the library cannot take one of them, as :meth:`takes` says of each."""
        found = facts(grads)
        alike = found.kinds == self._kinds and found.sizes == self._sizes and all(found.contiguous)
        if alike and not any(found.negative):
            return array("q", found.addresses)
        if not all(self.takes(grad, i) for i, grad in enumerate(grads)):
            return None
        return array("q", map(Tensor.data_ptr, grads))

    def step(self, grads: array[int], options: StepOptions) -> bool:
        """Whether the library took the step; False: nothing was changed, the reference must."""
        call, selection = self._call, options.selection
        call.tensors[_GRAD] = pointer(grads)
        for i, name in _OPTIONAL:
            call.tensors[i] = self._tensors[name] if options.uses(name) else None
        call.thresholds, call.rescaling, call.seed, call.draw_number = _selection_fields(selection)
        for name in _OPTIONS:
            setattr(call, name, _number(name, getattr(options, name)))
        call.acts_on = _number("acts_on", selection.acts_on) if selection is not None else 0
        call.threads = threads()
        if not succeeded(loaded().roast_adamw(call)):
            return False
        increment_version(self._params)  # as every in-place operation of torch does, for autograd to notice
        return True


_GRAD = list(TENSORS).index("grad")
_OVERLAP = "tensors of the step overlap in memory: give each parameter, and each tensor of its state, memory of its own"
_OPTIONAL = [(i, name) for i, name in enumerate(TENSORS) if TENSORS[name].needs is not None]
_OPTIONS = [each.name for each in fields(StepOptions) if each.name in SCALARS]


def _number(name: str, value: Any) -> Any:
    return CHOICES[name].index(value) if name in CHOICES else value


def _dtypes(row: StepRow) -> tuple[torch.dtype, ...] | None:
    """Dtypes of the parameter, of its moments and of its scores; None: the reference must take the row."""
    dtypes, numel = (row.param.dtype, row.exp_avg.dtype, row.score_dtype), row.param.numel()
    if not DTYPES.keys() >= set(dtypes) or not row.has_usual_dtypes():
        return None
    for name, tensor in row.with_gradient(None).tensors():
        suits = (
            tensor.numel() == (numel if TENSORS[name].per_element else 1)
            and tensor.is_cpu
            and tensor.is_contiguous()
            and not tensor.is_neg()
        )
        if not suits:
            return None
    return dtypes


def _selection_fields(selection: Selection | None) -> tuple[int | None, int | None, int, int]:
    """What Step calls thresholds, rescaling, seed and draw_number."""
    if selection is None:
        return None, None, 0, -1
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
    """Add the squared gradients to the importance scores, in place; see :func:`..reference.accumulate_importance_`.

    That also takes scores of bfloat16, of which a training's steps make no use.
    """

    def plan(importances: list[Tensor], grads: list[Tensor]) -> list[array[int]] | None:
        if grads[0].dtype not in DTYPES or any(grad.is_neg() for grad in grads):
            return None
        return sizes_and_addresses((importances, torch.float32), (grads, grads[0].dtype))

    for lists, (scores, own_grads) in parts(plan, [importances, grads]):
        if lists is not None:
            arguments = (len(scores), *map(pointer, lists), DTYPES[own_grads[0].dtype], threads())
            if succeeded(loaded().roast_accumulate(*arguments)):
                continue
        reference.accumulate_importance_(scores, own_grads)


def histogram_(scores: list[Tensor], counts: Tensor) -> None:
    """Add the number of scores in each of the 65,536 bins to ``counts``; see :func:`..reference.histogram_`."""
    bins = addresses([counts], torch.int64, [HISTOGRAM_BINS])

    def plan(scores: list[Tensor]) -> list[array[int]] | None:
        return sizes_and_addresses((scores, scores[0].dtype)) if scores[0].dtype in DTYPES else None

    for lists, (part,) in parts(plan, [scores]):
        if lists is not None and bins is not None:
            arguments = (len(part), *map(pointer, lists), DTYPES[part[0].dtype], bins[0], threads())
            if succeeded(loaded().roast_histogram(*arguments)):
                continue
        reference.histogram_(part, counts)


def assign_rank_codes_(importances: list[Tensor], rank_codes: list[Tensor], table: Tensor) -> None:
    """Write ``table[bin]`` into the rank codes and reset the importance scores to zero."""
    codes = addresses([table], torch.uint8, [HISTOGRAM_BINS])

    def plan(importances: list[Tensor], rank_codes: list[Tensor]) -> list[array[int]] | None:
        if importances[0].dtype not in DTYPES:
            return None
        return sizes_and_addresses((importances, importances[0].dtype), (rank_codes, torch.uint8))

    for lists, (scores, ranks) in parts(plan, [importances, rank_codes]):
        if lists is not None and codes is not None:
            numel, addresses_of_scores, addresses_of_ranks = map(pointer, lists)
            of_scores = (len(scores), numel, addresses_of_scores, DTYPES[scores[0].dtype])
            arguments = (*of_scores, addresses_of_ranks, codes[0], threads())
            if succeeded(loaded().roast_assign_codes(*arguments)):
                continue
        reference.assign_rank_codes_(scores, ranks, table)
