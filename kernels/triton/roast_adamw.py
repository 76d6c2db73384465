"""The fused RoAST step: which parameters share a launch, and what the launch is given.

One launch serves all parameters of a device that agree in dtypes, alignment and kind of position.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from ctypes import c_float
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import reference
from ..plan import StepPlan, check_options, gradients, not_contiguous
from ..step import (
    LAST_EXACT_COUNT,
    SCALARS,
    Selection,
    StepOptions,
    StepRow,
    advance_counts_,
    next_count,
)
from ..tensor_facts import Facts, facts
from .importance import FLOAT_TYPES, accumulate_importance_
from .launch import OPTIONS, DeviceTables, on
from .pointer_table import PointerTable, is_aligned
from .roast_adamw_kernel import COLUMNS, roast_adamw_kernel

# Numbers that the kernel takes as they are, by name, and those that it also reads on the device.
_ON_DEVICE = {"lr": "LR_ON_DEVICE", "gradient_factor": "FACTOR_ON_DEVICE"}
_NUMBERS = [name for name, kind in SCALARS.items() if kind == "double" and name not in (*_ON_DEVICE, "beta1", "beta2")]
_GRAD, _STEP = COLUMNS.index("grad"), COLUMNS.index("step")
_shape_of, _device_of = attrgetter("shape"), attrgetter("device")


def plan(rows: Sequence[StepRow]) -> StepPlan:
    """A plan for many steps with these rows.

    Raises:
        ValueError: rows with different tensors, tensors of a row that differ in device or shape, or freed memory.
    """
    return _Plan(rows)


def roast_adamw_(rows: Sequence[StepRow], options: StepOptions) -> None:
    """One step, in place; see :func:`..reference.roast_adamw_`. The host does not wait for the device.

    Masks and importance are the reference's bit for bit. Values agree to rounding: arithmetic is in float32 and each
    result is rounded once. With ``capturable`` the step counts are read on the device; so are a learning rate and a
    factor of the gradients that are tensors there. What is not contiguous or not of dtype float32, bfloat16 or float16
    takes the reference, and so does everything if a beta is a tensor on the device.

    Raises:
        ValueError: rows with different tensors, tensors of a row that differ in device or shape, or ``capturable`` with
            step counts elsewhere.
    """
    _Plan(rows).step(gradients(rows), options)


class Variant(NamedTuple):
    """What the parameters of one launch have in common; compiled into the kernel."""

    device: torch.device
    param: torch.dtype
    grad: torch.dtype
    state: torch.dtype
    score: torch.dtype
    aligned: bool  # all addresses are multiples of 16 bytes
    run: bool  # the elements lie side by side in the whole parameter and begin at a multiple of four


class _Plan(StepPlan):
    """The launches of a step. They depend on the gradients too, by dtype, alignment and layout, which rarely change."""

    def __init__(self, rows: Sequence[StepRow]) -> None:
        super().__init__(rows)
        for row in self.rows():
            _check_same_place(row)
        self._shapes, self._devices = list(map(_shape_of, self.params)), list(map(_device_of, self.params))
        # On the host a count is a number that is read and written where it lies: torch takes a microsecond for each.
        steps = [row.step for row in rows]
        on_host = all(step.is_cpu and step.dtype is torch.float32 for step in steps)
        self._counts = [c_float.from_address(step.data_ptr()) for step in steps] if on_host else None
        self._grads_of_launches: tuple[Sequence[object], Sequence[int], Sequence[bool], list[bool]] | None = None
        self._launches: list[_Launch] = []
        self._by_reference: list[int] = []

    def accumulate(self, grads: Sequence[Tensor], gradient_factor: float | Tensor = 1.0) -> None:
        grads = reference.all_multiplied(grads, gradient_factor)
        accumulate_importance_(self.importances(), grads, self.held_for_graphs)

    def step(self, grads: Sequence[Tensor], options: StepOptions) -> None:
        check_options(self.names, options)
        self._check_gradients(grads)
        if options.capturable:
            self._check_step_counts()
        if any(isinstance(beta, Tensor) and beta.is_cuda for beta in (options.beta1, options.beta2)):
            self.note_fallback("betas are tensors on the GPU: make them numbers, or tensors on the CPU")
            reference.roast_adamw_(self.rows(grads), options)
            return
        found = facts(grads)
        addresses = found.addresses
        self._find_launches(grads, found, addresses)
        counts = self._counted(options.capturable)
        for launch in self._launches:
            launch.run(addresses, counts, options)
        if self._by_reference:
            rows = self.rows(grads)
            reference.roast_adamw_([rows[i] for i in self._by_reference], options)

    def _check_gradients(self, grads: Sequence[Tensor]) -> None:
        # Facts tell neither a shape of the same size nor, before they are compared, another device.
        if list(map(_shape_of, grads)) != self._shapes or list(map(_device_of, grads)) != self._devices:
            for row in self.rows(grads):
                _check_same_place(row)

    def _check_step_counts(self) -> None:
        for row in self.rows():
            if row.step.device != row.param.device:
                raise ValueError(
                    f"capturable=True with a step count on {row.step.device} and a parameter on {row.param.device}; "
                    "move the step count there"
                )

    def _find_launches(self, grads: Sequence[Tensor], found: Facts, addresses: Sequence[int]) -> None:
        aligned = [address & 15 == 0 for address in addresses]
        kinds = (found.kinds, found.contiguous, found.negative, aligned)
        if kinds == self._grads_of_launches:
            return
        members: dict[Variant, list[int]] = {}
        self._by_reference = []
        rows = self.rows()
        for i, (row, grad, on_edge) in enumerate(zip(rows, grads, aligned, strict=True)):
            reason = _why_not_fused(row, grad)
            if reason is not None:
                self.note_fallback(reason)
                self._by_reference.append(i)
            else:
                members.setdefault(_variant(row, grad, on_edge), []).append(i)
        self._launches = [
            _Launch(variant, [rows[i] for i in indices], indices, DeviceTables(self.held_for_graphs))
            for variant, indices in members.items()
        ]
        self._grads_of_launches = kinds

    def _counted(self, on_device: bool) -> list[int]:
        """Increments the step counts of the launches, not the reference's; returns all counts, or where they lie."""
        if self._counts is not None and not self._by_reference and not on_device:
            counted = [
                value + 1.0 if value < LAST_EXACT_COUNT else next_count(value)
                for value in [count.value for count in self._counts]
            ]
            for count, number in zip(self._counts, counted, strict=True):
                count.value = number
            return list(map(int, counted))
        steps = [row.step for row in self.rows()]
        if self._launches:
            advance_counts_([steps[i] for launch in self._launches for i in launch.indices])
        return [step.data_ptr() if on_device else int(step) for step in steps]


class _Launch:
    """The rows of one variant, and the table of their addresses; what a step changes in it is written anew."""

    def __init__(self, variant: Variant, rows: list[StepRow], indices: list[int], tables: DeviceTables) -> None:
        self.variant, self.indices, self._tables = variant, indices, tables
        self._params = [row.param for row in rows]
        self._names = [name for name, _ in rows[0].tensors()]
        columns = []
        for row in rows:
            addresses = {name: tensor.data_ptr() for name, tensor in row.tensors()} | row.position._asdict()
            columns.append([addresses.get(name, 0) for name in COLUMNS])
        self._table = PointerTable(variant.device, [param.numel() for param in self._params], columns)

    def run(self, grads: Sequence[int], counts: Sequence[int], options: StepOptions) -> None:
        """Launch; addresses of gradients and step counts, or their addresses with ``capturable``, are of all rows."""
        variant, selection = self.variant, options.selection
        for column, numbers in ((_GRAD, grads), (_STEP, counts)):
            are_own = len(numbers) == len(self.indices)
            self._table.set_column(column, numbers if are_own else [numbers[i] for i in self.indices])
        scalars = {name: getattr(options, name) for name in _ON_DEVICE}
        found = {
            name for name, scalar in scalars.items() if isinstance(scalar, Tensor) and scalar.device == variant.device
        }
        for name in found:
            self._tables.keep(scalars[name])
        with on(variant.device):
            roast_adamw_kernel[self._table.grid](
                *self._table.on_device(self._tables),
                None if selection is None else _packed(selection, variant.device, self._tables),
                _as_int32(selection.seed) if selection else 0,
                _as_int32(selection.seed >> 32) if selection else 0,
                _as_int32(selection.draw_number or 0) if selection else 0,
                _as_int32(options.rounding_seed),
                _as_int32(options.rounding_seed >> 32),
                **{name: scalar if name in found else float(scalar) for name, scalar in scalars.items()},
                **{name: float(getattr(options, name)) for name in _NUMBERS},
                **_powers("beta1", float(options.beta1)),
                **_powers("beta2", float(options.beta2)),
                **self._table.constants,
                **dtype_constants(variant.param, variant.grad, variant.state, variant.score),
                **step_constants(options, self._names),
                **rounding_constants(options, variant.param, variant.state, variant.score),
                ALIGNED=variant.aligned,
                RUN=variant.run,
                **{constant: name in found for name, constant in _ON_DEVICE.items()},
                **OPTIONS,
            )
        increment_version(self._params)  # as every in-place operation of torch, for autograd to notice


def step_constants(options: StepOptions, names: Collection[str]) -> dict[str, bool]:
    """What of a step with these options and tensors is compiled into the kernel."""
    selection = options.selection
    return {
        "ACCUMULATE": options.accumulate,
        "SELECT": selection is not None,
        "DRAW_BY_STEP": selection is not None and selection.draw_number is None,
        "AMSGRAD": "max_exp_avg_sq" in names,
        "MAXIMIZE": options.maximize,
        "MULTIPLY": options.multiplies_gradients,
        "STEP_ON_DEVICE": options.capturable,
        "MASK_UPDATE": selection is not None and selection.acts_on == "update",
        "RETURN": options.returns_to_pretrained,
        "RETURN_BY_RANK": options.returns_to_pretrained and options.pretrained_decay_by == "rank",
    }


def dtype_constants(
    param: torch.dtype, grad: torch.dtype, state: torch.dtype, score: torch.dtype = torch.float32
) -> dict[str, Any]:
    """The dtypes that are compiled into the kernel."""
    types = {"PARAM_TYPE": param, "GRAD_TYPE": grad, "STATE_TYPE": state, "SCORE_TYPE": score}
    largest = {"LARGEST": torch.finfo(grad).max, "LARGEST_SCORE": torch.finfo(score).max}
    return {**{name: FLOAT_TYPES[dtype] for name, dtype in types.items()}, **largest}


def rounding_constants(
    options: StepOptions, param: torch.dtype, state: torch.dtype, score: torch.dtype = torch.float32
) -> dict[str, bool]:
    """What a step with these options and dtypes rounds stochastically; compiled into the kernel."""
    narrow = param is not torch.float32 or state is not torch.float32
    return {
        "ROUND_VALUES": options.stochastic_rounding and narrow,
        "ROUND_SCORES": options.accumulate and score is not torch.float32,
    }


def _check_same_place(row: StepRow) -> None:
    """Raise ValueError unless all tensors of the row, the step count apart, have its parameter's device and shape."""
    device, shape = row.param.device, row.param.shape
    for name, tensor in row.tensors():
        if name != "step" and (tensor.device != device or tensor.shape != shape):
            raise ValueError(
                f"a parameter of shape {tuple(shape)} on {device} came with a tensor of shape {tuple(tensor.shape)} on "
                f"{tensor.device} ({name}); all tensors of a parameter must agree"
            )


def _why_not_fused(row: StepRow, grad: Tensor) -> str | None:
    """Why the kernel cannot take a row with such a gradient, and what to do about it; None if it can."""
    for name, tensor in (*row.with_gradient(grad).tensors(),):
        if name != "step" and not tensor.is_contiguous():
            return not_contiguous(name)
        if tensor.is_neg():
            return f"{name} is a view with torch's negative bit: give it memory of its own with resolve_neg()"
    for name, dtype in (("param", row.param.dtype), ("grad", grad.dtype), ("exp_avg", row.exp_avg.dtype)):
        if dtype not in FLOAT_TYPES:
            cure = "state_dtype=torch.float32" if name == "exp_avg" and row.param.dtype in FLOAT_TYPES else "float32"
            return f"{name} is {dtype}, and only float32, bfloat16 and float16 are fused: use {cure}"
    for name, tensor in row.tensors():
        usual = row.usual_dtype(name)
        if name != "grad" and tensor.dtype != usual:
            return f"{name} is {tensor.dtype} and not {usual}: convert the checkpoint that it comes from"
    return None


def _variant(row: StepRow, grad: Tensor, grad_is_aligned: bool) -> Variant:
    """The launch that a row belongs to with such a gradient, all of which the kernel can take."""
    addresses = [tensor.data_ptr() for name, tensor in row.tensors() if name != "step"]
    aligned = grad_is_aligned and is_aligned(addresses)
    run = row.position.inner_length >= row.param.numel() and row.position.first_index % 4 == 0
    dtypes = (row.param.dtype, grad.dtype, row.exp_avg.dtype, row.score_dtype)
    return Variant(row.param.device, *dtypes, aligned, run)


def _packed(selection: Selection, device: torch.device, tables: DeviceTables) -> Tensor:
    """Threshold and the bits of the rescaling factor side by side, so that one access fetches both; int64 ``[256]``."""
    thresholds, rescaling = selection.thresholds, selection.rescaling

    def pack() -> Tensor:
        return (rescaling.view(torch.int32).to(torch.int64) << 32) | thresholds

    return tables.get("selection", device, pack, made_of=(thresholds, rescaling))


def _powers(name: str, beta: float) -> dict[str, float]:
    """Beta, 1 - beta, and its logarithm, as the kernel calls them."""
    return {name: beta, f"one_minus_{name}": 1.0 - beta, f"log_{name}": math.log(beta) if beta > 0 else -math.inf}


def _as_int32(word: int) -> int:
    """The lower 32 bits, as the signed number that triton passes as int32 whatever its value."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
