"""The RoAST step in one kernel: accumulate importance, draw, rescale, AdamW, in one pass over memory.

Per float32 element it moves 37 bytes: five tensors of four bytes and the rank code are read, four tensors are written.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ..step import TENSORS, Position
from .draw import halves_of_run, halves_of_shard, words_of_run, words_of_shard
from .importance import add_squares
from .pointer_table import elements, load, program_part
from .rounding import store_rounded

# Columns of the pointer table: an address per tensor (0: there is none), then where the parameter lies in its whole.
COLUMNS = (*TENSORS, *Position._fields)
PARAM = tl.constexpr(COLUMNS.index("param"))
GRAD = tl.constexpr(COLUMNS.index("grad"))
STEP = tl.constexpr(COLUMNS.index("step"))  # the count, or its address where it is read on the device
EXP_AVG = tl.constexpr(COLUMNS.index("exp_avg"))
EXP_AVG_SQ = tl.constexpr(COLUMNS.index("exp_avg_sq"))
MAX_EXP_AVG_SQ = tl.constexpr(COLUMNS.index("max_exp_avg_sq"))
IMPORTANCE = tl.constexpr(COLUMNS.index("importance"))
RANK_CODE = tl.constexpr(COLUMNS.index("rank_code"))
PRETRAINED = tl.constexpr(COLUMNS.index("pretrained"))
PARAMETER_ID = tl.constexpr(COLUMNS.index("parameter_id"))
FIRST_INDEX = tl.constexpr(COLUMNS.index("first_index"))
INNER_LENGTH = tl.constexpr(COLUMNS.index("inner_length"))
OUTER_STRIDE = tl.constexpr(COLUMNS.index("outer_stride"))

SMALLEST_PROBABILITY = tl.constexpr(2.0**-32)
SMALLEST_NORMAL = tl.constexpr(torch.finfo(torch.float32).tiny)
INFINITY = tl.constexpr(math.inf)


@triton.jit(do_not_specialize=["key0", "key1", "draw_number", "rounding_key0", "rounding_key1"])
def roast_adamw_kernel(
    rows,
    tensor_of_program,
    selection_table,
    key0,
    key1,
    draw_number,
    rounding_key0,
    rounding_key1,
    lr,
    weight_decay,
    eps,
    beta1,
    one_minus_beta1,  # from the host: 1 - 0.999 in float32 would be off by 2e-5
    log_beta1,
    beta2,
    one_minus_beta2,
    log_beta2,
    pretrained_decay,
    gradient_factor,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PARAM_TYPE: tl.constexpr,
    GRAD_TYPE: tl.constexpr,
    STATE_TYPE: tl.constexpr,
    SCORE_TYPE: tl.constexpr,
    LARGEST: tl.constexpr,
    LARGEST_SCORE: tl.constexpr,
    ALIGNED: tl.constexpr,
    RUN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SELECT: tl.constexpr,
    DRAW_BY_STEP: tl.constexpr,
    AMSGRAD: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    STEP_ON_DEVICE: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr,
    MULTIPLY: tl.constexpr,
    FACTOR_ON_DEVICE: tl.constexpr,
    MASK_UPDATE: tl.constexpr,
    RETURN: tl.constexpr,
    RETURN_BY_RANK: tl.constexpr,
    ROUND_VALUES: tl.constexpr,
    ROUND_SCORES: tl.constexpr,
):
    row, begin, full, end = program_part(rows, tensor_of_program, COLUMNS, CHUNK, BLOCK)
    step = tl.load(row + STEP)
    if STEP_ON_DEVICE:
        step = tl.load(step.to(tl.pointer_type(tl.float32))).to(tl.int64)
    if LR_ON_DEVICE:
        lr = tl.load(lr).to(tl.float32)
    if FACTOR_ON_DEVICE:
        gradient_factor = tl.load(gradient_factor).to(tl.float32)
    draw = draw_number.to(tl.uint32, bitcast=True)
    if DRAW_BY_STEP:
        draw = step.to(tl.uint32)
    key0 = key0.to(tl.uint32, bitcast=True)
    key1 = key1.to(tl.uint32, bitcast=True)
    rounding_key0 = rounding_key0.to(tl.uint32, bitcast=True)
    rounding_key1 = rounding_key1.to(tl.uint32, bitcast=True)
    rounding_draw = step.to(tl.uint32)
    parameter = tl.load(row + PARAMETER_ID).to(tl.uint32)

    # p - lr / b1 * m / (sqrt(v) / sqrt(b2) + eps), with the factor sqrt(b2) moved out of the fraction
    correction = tl.sqrt(one_minus_power(log_beta2, step.to(tl.float32)))
    negative_step_size = -lr * correction / one_minus_power(log_beta1, step.to(tl.float32))
    eps = eps * correction
    decay = 1.0 - lr * weight_decay
    return_rate = lr * pretrained_decay

    for start in range(begin, full, BLOCK):
        _step_block(
            row, start, None, selection_table, parameter, draw, key0, key1, rounding_draw, rounding_key0, rounding_key1,
            gradient_factor, decay, return_rate, negative_step_size, eps, beta1, one_minus_beta1, beta2,
            one_minus_beta2, BLOCK, PARAM_TYPE, GRAD_TYPE, STATE_TYPE, SCORE_TYPE, LARGEST, LARGEST_SCORE, ALIGNED, RUN,
            ACCUMULATE, SELECT, AMSGRAD, MAXIMIZE, MULTIPLY, MASK_UPDATE, RETURN, RETURN_BY_RANK, ROUND_VALUES,
            ROUND_SCORES, False,
        )  # fmt: skip
    if full < end:
        mask = tl.arange(0, BLOCK) < end - full
        _step_block(
            row, full, mask, selection_table, parameter, draw, key0, key1, rounding_draw, rounding_key0, rounding_key1,
            gradient_factor, decay, return_rate, negative_step_size, eps, beta1, one_minus_beta1, beta2,
            one_minus_beta2, BLOCK, PARAM_TYPE, GRAD_TYPE, STATE_TYPE, SCORE_TYPE, LARGEST, LARGEST_SCORE, ALIGNED, RUN,
            ACCUMULATE, SELECT, AMSGRAD, MAXIMIZE, MULTIPLY, MASK_UPDATE, RETURN, RETURN_BY_RANK, ROUND_VALUES,
            ROUND_SCORES, True,
        )  # fmt: skip


@triton.jit
def _step_block(
    row, start, mask, selection_table, parameter, draw, key0, key1, rounding_draw, rounding_key0, rounding_key1,
    gradient_factor, decay, return_rate, negative_step_size, eps, beta1, one_minus_beta1, beta2, one_minus_beta2,
    BLOCK: tl.constexpr, PARAM_TYPE: tl.constexpr, GRAD_TYPE: tl.constexpr, STATE_TYPE: tl.constexpr,
    SCORE_TYPE: tl.constexpr, LARGEST: tl.constexpr, LARGEST_SCORE: tl.constexpr, ALIGNED: tl.constexpr,
    RUN: tl.constexpr, ACCUMULATE: tl.constexpr, SELECT: tl.constexpr, AMSGRAD: tl.constexpr, MAXIMIZE: tl.constexpr,
    MULTIPLY: tl.constexpr, MASK_UPDATE: tl.constexpr, RETURN: tl.constexpr, RETURN_BY_RANK: tl.constexpr,
    ROUND_VALUES: tl.constexpr, ROUND_SCORES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The step of BLOCK elements. Tensors are fetched one after the other where they are used, to save registers."""
    grad = load(elements(row, GRAD, start, GRAD_TYPE, ALIGNED, BLOCK), mask, MASKED).to(tl.float32)
    if MULTIPLY:
        grad = (grad * gradient_factor).to(GRAD_TYPE).to(tl.float32)
    if SELECT:
        rank_code = load(elements(row, RANK_CODE, start, tl.uint8, ALIGNED, BLOCK), mask, MASKED)
    parameter_bits = 0
    bits = 0
    if ROUND_VALUES or ROUND_SCORES:
        parameter_bits = _drawn(row, start, parameter, rounding_draw, rounding_key0, rounding_key1, True, RUN, BLOCK)
        bits = (parameter_bits & 0xFF) << 8 | parameter_bits >> 8
    if ACCUMULATE:
        pointers = elements(row, IMPORTANCE, start, SCORE_TYPE, ALIGNED, BLOCK)
        scores = add_squares(load(pointers, mask, MASKED).to(tl.float32), grad, LARGEST_SCORE)
        store_rounded(pointers, scores, bits, mask, ROUND_SCORES, MASKED)
    if SELECT:
        words = _drawn(row, start, parameter, draw, key0, key1, False, RUN, BLOCK)
        entry = tl.load(selection_table + rank_code.to(tl.int32)).to(tl.uint64, bitcast=True)
        threshold = entry.to(tl.uint32)
        kept = words < threshold
        if not MASK_UPDATE:
            grad = tl.where(kept, _rescaled(grad, entry, GRAD_TYPE, LARGEST), 0.0)
    if MAXIMIZE:
        grad = -grad

    pointers = elements(row, EXP_AVG, start, STATE_TYPE, ALIGNED, BLOCK)
    exp_avg = load(pointers, mask, MASKED).to(tl.float32)
    exp_avg = tl.fma(grad, one_minus_beta1, exp_avg * beta1)
    store_rounded(pointers, exp_avg, bits, mask, ROUND_VALUES, MASKED)

    pointers = elements(row, EXP_AVG_SQ, start, STATE_TYPE, ALIGNED, BLOCK)
    exp_avg_sq = load(pointers, mask, MASKED).to(tl.float32)
    exp_avg_sq = tl.fma(grad * one_minus_beta2, grad, exp_avg_sq * beta2)
    store_rounded(pointers, exp_avg_sq, bits, mask, ROUND_VALUES, MASKED)
    if AMSGRAD:
        pointers = elements(row, MAX_EXP_AVG_SQ, start, STATE_TYPE, ALIGNED, BLOCK)
        largest = load(pointers, mask, MASKED).to(tl.float32)
        exp_avg_sq = tl.maximum(largest, exp_avg_sq, propagate_nan=tl.PropagateNan.ALL)
        store_rounded(pointers, exp_avg_sq, bits, mask, ROUND_VALUES, MASKED)

    pointers = elements(row, PARAM, start, PARAM_TYPE, ALIGNED, BLOCK)
    param = load(pointers, mask, MASKED).to(tl.float32)
    update = exp_avg / (_square_root(exp_avg_sq) + eps)
    if RETURN or MASK_UPDATE:
        param = param * decay
        if RETURN:
            pretrained = load(elements(row, PRETRAINED, start, STATE_TYPE, ALIGNED, BLOCK), mask, MASKED)
            if RETURN_BY_RANK:
                return_rate = return_rate * ((0 - threshold).to(tl.float32) * SMALLEST_PROBABILITY)
            param = tl.fma(pretrained.to(tl.float32) - param, return_rate, param)
        moved = tl.fma(update, negative_step_size, param)
        if MASK_UPDATE:
            moved = tl.where(kept, moved, param)
    else:
        moved = tl.fma(update, negative_step_size, param * decay)
    store_rounded(pointers, moved, parameter_bits, mask, ROUND_VALUES, MASKED)


@triton.jit
def _drawn(row, start, parameter, draw, key0, key1, HALVES: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr):
    """The words for the masks of BLOCK elements, or the halves for rounding."""
    first = tl.load(row + FIRST_INDEX)
    if RUN:
        of_run: tl.constexpr = halves_of_run if HALVES else words_of_run
        drawn = of_run(first + start, parameter, draw, key0, key1, BLOCK)
    else:
        of_shard: tl.constexpr = halves_of_shard if HALVES else words_of_shard
        inner, stride = tl.load(row + INNER_LENGTH), tl.load(row + OUTER_STRIDE)
        drawn = of_shard(start, first, inner, stride, parameter, draw, key0, key1, BLOCK)
    return drawn


@triton.jit
def _rescaled(grad, entry, GRAD_TYPE: tl.constexpr, LARGEST: tl.constexpr):
    """The gradient over p, rounded to and saturating at the range of the gradient's dtype; non-finite g passes."""
    rescaling = (entry >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
    limit = tl.where(tl.abs(grad) <= LARGEST, LARGEST, INFINITY)
    scaled = tl.maximum(grad * rescaling, -limit, propagate_nan=tl.PropagateNan.ALL)
    scaled = tl.minimum(scaled, limit, propagate_nan=tl.PropagateNan.ALL)
    return scaled.to(GRAD_TYPE).to(tl.float32)


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
        series = 1.0 + x * (1.0 / k) * series
    return tl.where(x > -0.5, -x * series, 1.0 - tl.exp(x))
