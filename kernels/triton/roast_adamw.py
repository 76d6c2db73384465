"""The RoAST step in one kernel: accumulate importance, draw, rescale, AdamW, in one pass over memory.

One launch serves all parameters of a device that agree in dtypes, alignment and kind of placement. Per float32 element
the pass moves 37 bytes: five tensors of four bytes and the rank code are read, four tensors are written.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..backend import Placement, Selection
from .draw import words_of_run, words_of_shard
from .importance import FLOAT_TYPES, add_squares
from .launch import OPTIONS, cached_outside_graphs, on
from .pointer_table import PointerTable, elements, is_aligned, load, program_part, store

# Columns of the pointer table: addresses (0 for tensors that are not needed), then numbers.
PARAM = tl.constexpr(0)
GRAD = tl.constexpr(1)
EXP_AVG = tl.constexpr(2)
EXP_AVG_SQ = tl.constexpr(3)
MAX_EXP_AVG_SQ = tl.constexpr(4)
IMPORTANCE = tl.constexpr(5)
RANK_CODE = tl.constexpr(6)
STEP = tl.constexpr(7)  # the count, or its address where it is read on the device
PARAMETER_ID = tl.constexpr(8)
FIRST_INDEX = tl.constexpr(9)
INNER_LENGTH = tl.constexpr(10)
OUTER_STRIDE = tl.constexpr(11)

SMALLEST_NORMAL = tl.constexpr(torch.finfo(torch.float32).tiny)
INFINITY = tl.constexpr(math.inf)


class Variant(NamedTuple):
    """What the parameters of one launch have in common; compiled into the kernel."""

    device: torch.device
    param: torch.dtype
    grad: torch.dtype
    state: torch.dtype
    aligned: bool  # all addresses are multiples of 16 bytes
    run: bool  # the elements lie side by side in the whole parameter and begin at a multiple of four


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
    """One step, in place; see :func:`..reference.roast_adamw_`. The host does not wait for the device.

    Masks and importance are the reference's bit for bit. Values agree to rounding: arithmetic is in float32 and each
    result is rounded once. With ``capturable`` the step counts are read on the device; so is a learning rate that is a
    tensor there. What is not contiguous or not of dtype float32, bfloat16 or float16 takes the reference, and so does
    everything if a beta is a tensor on the device.

    Raises:
        ValueError: the tensors of a parameter differ in device or shape, or ``capturable`` with step counts elsewhere.
    """
    lists = [
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs if amsgrad else [],
        importances if accumulate else [],
        rank_codes if selection is not None else [],
    ]
    given = [column for column, tensors in enumerate(lists) if tensors]
    betas_on_device = any(isinstance(beta, Tensor) and beta.is_cuda for beta in (beta1, beta2))
    members: dict[Variant | None, list[int]] = defaultdict(list)
    addresses = [[0] * len(lists) for _ in params]
    for i, tensors in enumerate(zip(*(lists[column] for column in given), strict=True)):
        for column, tensor in zip(given, tensors, strict=True):
            addresses[i][column] = tensor.data_ptr()
        variant = None if betas_on_device else _variant(tensors, addresses[i], placements[i])
        members[variant].append(i)
        if capturable and state_steps[i].device != tensors[0].device:
            raise ValueError(
                f"capturable=True with a step count on {state_steps[i].device} and a parameter on {tensors[0].device}; "
                "move the step count there"
            )

    for variant, indices in members.items():
        steps = [state_steps[i] for i in indices]
        if variant is None:
            some = [[tensors[i] for i in indices] if tensors else [] for tensors in lists]
            reference.roast_adamw_(
                some[0], some[1], some[2], some[3], some[4], steps, some[5], some[6], [placements[i] for i in indices],
                lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize,
                capturable=capturable, accumulate=accumulate, selection=selection,
            )  # fmt: skip
            continue
        torch._foreach_add_(steps, 1.0)
        columns = [
            [*addresses[i], step.data_ptr() if capturable else int(step), *placements[i]]
            for i, step in zip(indices, steps, strict=True)
        ]
        with on(variant.device):
            table = PointerTable(variant.device, [params[i].numel() for i in indices], columns)
            _roast_adamw_kernel[table.grid](
                table.rows,
                table.tensor_of_program,
                None if selection is None else _packed_tables(selection.thresholds, selection.rescaling),
                _as_int32(selection.seed) if selection else 0,
                _as_int32(selection.seed >> 32) if selection else 0,
                _as_int32(selection.draw_number or 0) if selection else 0,
                lr if isinstance(lr, Tensor) and lr.device == variant.device else float(lr),
                float(weight_decay),
                float(eps),
                float(beta1),
                1.0 - float(beta1),
                _log(float(beta1)),
                float(beta2),
                1.0 - float(beta2),
                _log(float(beta2)),
                COLUMNS=table.columns,
                CHUNK=table.chunk,
                BLOCK=table.block,
                PARAM_TYPE=FLOAT_TYPES[variant.param],
                GRAD_TYPE=FLOAT_TYPES[variant.grad],
                STATE_TYPE=FLOAT_TYPES[variant.state],
                LARGEST=torch.finfo(variant.grad).max,
                ALIGNED=variant.aligned,
                RUN=variant.run,
                ACCUMULATE=accumulate,
                SELECT=selection is not None,
                DRAW_BY_STEP=selection is not None and selection.draw_number is None,
                AMSGRAD=amsgrad,
                MAXIMIZE=maximize,
                STEP_ON_DEVICE=capturable,
                LR_ON_DEVICE=isinstance(lr, Tensor) and lr.device == variant.device,
                **OPTIONS,
            )


def _variant(tensors: tuple[Tensor, ...], addresses: list[int], placement: Placement) -> Variant | None:
    """The launch that a parameter belongs to; None: the reference."""
    param, grad, exp_avg, exp_avg_sq = tensors[:4]
    device, shape, contiguous = param.device, param.shape, True
    for tensor in tensors:
        if tensor.device != device or tensor.shape != shape:
            raise ValueError(
                f"a parameter of shape {tuple(shape)} on {device} came with a tensor of shape {tuple(tensor.shape)} on "
                f"{tensor.device}; all tensors of a parameter must agree"
            )
        contiguous = contiguous and tensor.is_contiguous()
    dtypes = (param.dtype, grad.dtype, exp_avg.dtype)
    if not contiguous or exp_avg_sq.dtype != exp_avg.dtype or not FLOAT_TYPES.keys() >= set(dtypes):
        return None
    run = placement.inner_length >= param.numel() and placement.first_index % 4 == 0
    return Variant(device, *dtypes, is_aligned(addresses), run)


@cached_outside_graphs
def _packed_tables(thresholds: Tensor, rescaling: Tensor) -> Tensor:
    """Threshold and the bits of the rescaling factor side by side, so that one access fetches both; int64 ``[256]``."""
    return (rescaling.view(torch.int32).to(torch.int64) << 32) | thresholds


def _as_int32(word: int) -> int:
    """The lower 32 bits, as the signed number that triton passes as int32 whatever its value."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf


@triton.jit(do_not_specialize=["key0", "key1", "draw_number"])
def _roast_adamw_kernel(
    rows,
    tensor_of_program,
    selection_table,
    key0,
    key1,
    draw_number,
    lr,
    weight_decay,
    eps,
    beta1,
    one_minus_beta1,  # from the host: 1 - 0.999 in float32 would be off by 2e-5
    log_beta1,
    beta2,
    one_minus_beta2,
    log_beta2,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PARAM_TYPE: tl.constexpr,
    GRAD_TYPE: tl.constexpr,
    STATE_TYPE: tl.constexpr,
    LARGEST: tl.constexpr,
    ALIGNED: tl.constexpr,
    RUN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SELECT: tl.constexpr,
    DRAW_BY_STEP: tl.constexpr,
    AMSGRAD: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    STEP_ON_DEVICE: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr,
):
    row, begin, full, end = program_part(rows, tensor_of_program, COLUMNS, CHUNK, BLOCK)
    step = tl.load(row + STEP)
    if STEP_ON_DEVICE:
        step = tl.load(step.to(tl.pointer_type(tl.float32))).to(tl.int64)
    if LR_ON_DEVICE:
        lr = tl.load(lr).to(tl.float32)
    draw = draw_number.to(tl.uint32, bitcast=True)
    if DRAW_BY_STEP:
        draw = step.to(tl.uint32)
    key0 = key0.to(tl.uint32, bitcast=True)
    key1 = key1.to(tl.uint32, bitcast=True)
    parameter = tl.load(row + PARAMETER_ID).to(tl.uint32)

    # p - lr / b1 * m / (sqrt(v) / sqrt(b2) + eps), with the factor sqrt(b2) moved out of the fraction
    correction = tl.sqrt(one_minus_power(log_beta2, step.to(tl.float32)))
    negative_step_size = -lr * correction / one_minus_power(log_beta1, step.to(tl.float32))
    eps = eps * correction
    decay = 1.0 - lr * weight_decay

    for start in range(begin, full, BLOCK):
        _step_block(
            row, start, None, selection_table, parameter, draw, key0, key1, decay, negative_step_size, eps,
            beta1, one_minus_beta1, beta2, one_minus_beta2, BLOCK, PARAM_TYPE, GRAD_TYPE, STATE_TYPE, LARGEST,
            ALIGNED, RUN, ACCUMULATE, SELECT, AMSGRAD, MAXIMIZE, False,
        )  # fmt: skip
    if full < end:
        mask = tl.arange(0, BLOCK) < end - full
        _step_block(
            row, full, mask, selection_table, parameter, draw, key0, key1, decay, negative_step_size, eps,
            beta1, one_minus_beta1, beta2, one_minus_beta2, BLOCK, PARAM_TYPE, GRAD_TYPE, STATE_TYPE, LARGEST,
            ALIGNED, RUN, ACCUMULATE, SELECT, AMSGRAD, MAXIMIZE, True,
        )  # fmt: skip


@triton.jit
def _step_block(
    row, start, mask, selection_table, parameter, draw, key0, key1, decay, negative_step_size, eps,
    beta1, one_minus_beta1, beta2, one_minus_beta2, BLOCK: tl.constexpr, PARAM_TYPE: tl.constexpr,
    GRAD_TYPE: tl.constexpr, STATE_TYPE: tl.constexpr, LARGEST: tl.constexpr, ALIGNED: tl.constexpr,
    RUN: tl.constexpr, ACCUMULATE: tl.constexpr, SELECT: tl.constexpr, AMSGRAD: tl.constexpr, MAXIMIZE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """The step of BLOCK elements. Tensors are fetched one after the other where they are used, to save registers."""
    grad = load(elements(row, GRAD, start, GRAD_TYPE, ALIGNED, BLOCK), mask, MASKED).to(tl.float32)
    if SELECT:
        rank_code = load(elements(row, RANK_CODE, start, tl.uint8, ALIGNED, BLOCK), mask, MASKED)
    if ACCUMULATE:
        scores = elements(row, IMPORTANCE, start, tl.float32, ALIGNED, BLOCK)
        store(scores, add_squares(load(scores, mask, MASKED), grad), mask, MASKED)
    if SELECT:
        first_index = tl.load(row + FIRST_INDEX)
        if RUN:
            words = words_of_run(first_index + start, parameter, draw, key0, key1, BLOCK)
        else:
            inner_length = tl.load(row + INNER_LENGTH)
            outer_stride = tl.load(row + OUTER_STRIDE)
            words = words_of_shard(
                start, first_index, inner_length, outer_stride, parameter, draw, key0, key1, BLOCK
            )  # fmt: skip
        grad = _selected_gradient(grad, rank_code, words, selection_table, GRAD_TYPE, LARGEST)
    if MAXIMIZE:
        grad = -grad

    pointers = elements(row, EXP_AVG, start, STATE_TYPE, ALIGNED, BLOCK)
    exp_avg = load(pointers, mask, MASKED).to(tl.float32)
    exp_avg = tl.fma(grad, one_minus_beta1, exp_avg * beta1)
    store(pointers, exp_avg, mask, MASKED)

    pointers = elements(row, EXP_AVG_SQ, start, STATE_TYPE, ALIGNED, BLOCK)
    exp_avg_sq = load(pointers, mask, MASKED).to(tl.float32)
    exp_avg_sq = tl.fma(grad * one_minus_beta2, grad, exp_avg_sq * beta2)
    store(pointers, exp_avg_sq, mask, MASKED)
    if AMSGRAD:
        pointers = elements(row, MAX_EXP_AVG_SQ, start, STATE_TYPE, ALIGNED, BLOCK)
        largest = load(pointers, mask, MASKED).to(tl.float32)
        exp_avg_sq = tl.maximum(largest, exp_avg_sq, propagate_nan=tl.PropagateNan.ALL)
        store(pointers, exp_avg_sq, mask, MASKED)

    pointers = elements(row, PARAM, start, PARAM_TYPE, ALIGNED, BLOCK)
    param = load(pointers, mask, MASKED).to(tl.float32)
    update = exp_avg / (_square_root(exp_avg_sq) + eps)
    store(pointers, tl.fma(update, negative_step_size, param * decay), mask, MASKED)


@triton.jit
def _selected_gradient(grad, rank_code, words, selection_table, GRAD_TYPE: tl.constexpr, LARGEST: tl.constexpr):
    """(m / p) * g, rounded to and saturating at the range of the gradient's dtype; non-finite g passes if kept."""
    entry = tl.load(selection_table + rank_code.to(tl.int32)).to(tl.uint64, bitcast=True)
    rescaling = (entry >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
    limit = tl.where(tl.abs(grad) <= LARGEST, LARGEST, INFINITY)
    scaled = tl.maximum(grad * rescaling, -limit, propagate_nan=tl.PropagateNan.ALL)
    scaled = tl.minimum(scaled, limit, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(words < entry.to(tl.uint32), scaled.to(GRAD_TYPE).to(tl.float32), 0.0)


@triton.jit
def _square_root(x):
    """tl.sqrt without its flushing of subnormal numbers to zero, by which a denominator without eps would vanish."""
    small = x < SMALLEST_NORMAL
    root = tl.sqrt(tl.where(small, x * 16777216.0, x))
    return tl.where(small, root * 0.000244140625, root)


@triton.jit
def one_minus_power(log_base, exponent):
    """1 - base ** exponent without cancellation; log_base <= 0."""
    x = log_base * exponent
    series = 1.0
    for k in tl.static_range(9, 1, -1):
        series = 1.0 + x / k * series
    return tl.where(x > -0.5, -x * series, 1.0 - tl.exp(x))
