"""The RoAST step in plain torch: any device, no float64, the definition that every other backend is tested against.

Everything works on chunks of :data:`CHUNK` elements, so temporaries do not grow with the parameter. All functions work
in place on the tensors they are given and never change a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .plan import StepPlan, check_options
from .step import (
    HISTOGRAM_BINS,
    TENSORS,
    Position,
    Selection,
    StepOptions,
    StepRow,
    advance_counts_,
    draw_number_of,
    next_count,
)

CHUNK = 1 << 18  # elements; a multiple of eight, so that chunks of a whole parameter begin with a fresh Philox block

Word = int | Tensor  # 32 bits, as a Python int or in an int64 tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# What a draw is for: the highest bit of the block number's 64, of which elements of a parameter take 61 at most. So two
# draws of one seed never meet.
FOR_MASKS = 0
FOR_ROUNDING = 1 << 31


def unavailable(device: torch.device | None = None) -> str | None:
    """None: plain torch runs everywhere."""
    return None


def supports(device: torch.device) -> bool:
    """True: plain torch runs on every device."""
    return True


def activation_kernels(*tensors: Tensor) -> None:
    """None: plain torch does it."""


# ---------------------------------------------------------------------------------------------------------------- draw


def philox4x32(
    counter: tuple[Word, Word, Word, Word], key: tuple[int, int], rounds: int = 7
) -> tuple[Word, Word, Word, Word]:
    """Four random words from a counter and a key: Philox4x32 (Salmon et al., SC 2011, section 4.2).

    Args:
        counter: four words; Python ints or int64 tensors that broadcast.
        key: two words.
        rounds: 7 is the fewest that pass BigCrush (same paper, table 2); 10 is the published default.

    Returns:
        Four words; int64 tensors wherever the counter had one.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # The low 64 bits of an int64 product are exact in two's complement; masking after the arithmetic shift drops
        # the sign extension, so high and low words are those of the unsigned product.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((product1 >> 32) & _MASK) ^ c1 ^ k0, product1 & _MASK
        c2, c3 = ((product0 >> 32) & _MASK) ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def draw_words(
    position: Position, start: int, count: int, *, seed: int, draw_number: Word, device: torch.device
) -> Tensor:
    """The random words for the masks of local elements ``start .. start + count - 1``, int64 ``[count]``.

    Element e of the whole parameter takes word ``e % 4`` of the block with counter (e // 4, parameter id, draw number).
    """
    return _drawn(FOR_MASKS, position, start, count, seed, draw_number, device)


def draw_halves(
    position: Position, start: int, count: int, *, seed: int, draw_number: Word, device: torch.device
) -> Tensor:
    """Numbers in [0, 2**16) for the rounding of local elements ``start .. start + count - 1``, int64 ``[count]``.

    Element e of the whole parameter takes half ``e % 8`` of the block with counter (e // 8, parameter id, draw number),
    the lower half of each word first; so a block serves twice as many elements as for masks. The highest of the 64 bits
    of e // 8 is set.
    """
    return _drawn(FOR_ROUNDING, position, start, count, seed, draw_number, device)


def _drawn(
    purpose: int, position: Position, start: int, count: int, seed: int, draw_number: Word, device: torch.device
) -> Tensor:
    key = (seed & _MASK, seed >> 32)
    size = 4 if purpose == FOR_MASKS else 8  # words or halves of a block
    first, inner, stride = position.first_index, position.inner_length, position.outer_stride
    (row, column), (last_row, last_column) = divmod(start, inner), divmod(start + max(count, 1) - 1, inner)
    wide = first + last_row * stride + last_column >= size << 32  # block numbers beyond 32 bits
    if row == last_row:  # one run of neighbours in the whole parameter: as many as ``size`` share a block
        begin = first + row * stride + column
        blocks = torch.arange(begin // size, -(-(begin + count) // size), device=device)
    else:
        local = torch.arange(start, start + count, device=device)
        elements = first + local.div(inner, rounding_mode="floor") * stride + local % inner
        blocks = elements // size
    upper = (blocks >> 32) | purpose if wide else purpose
    counter = (blocks & _MASK, upper, position.parameter_id, draw_number)
    drawn = torch.stack([torch.as_tensor(word, device=device) for word in philox4x32(counter, key)], dim=1)
    if purpose == FOR_ROUNDING:
        drawn = torch.stack([drawn & 0xFFFF, drawn >> 16], dim=2).flatten(1)
    if row == last_row:
        return drawn.view(-1)[begin % size : begin % size + count]
    return drawn.gather(1, (elements % size).unsqueeze(1)).squeeze(1)


def kept(rank_code: Tensor, words: Tensor, thresholds: Tensor) -> Tensor:
    """Which elements are updated: bool, shaped like ``rank_code`` (uint8)."""
    return words.view(rank_code.shape) < _look_up(thresholds, rank_code)


def multiplied(grad: Tensor, factor: float | Tensor) -> Tensor:
    """G <- fl(c g): the product in float32 at least, then rounded to the dtype of ``grad``; what overflows is infinite.

    So a step with a factor is the step with gradients that were multiplied before, bit for bit.
    """
    working = torch.promote_types(grad.dtype, torch.float32)
    return (grad.to(working) * torch.as_tensor(factor, dtype=working, device=grad.device)).to(grad.dtype)


def all_multiplied(grads: Sequence[Tensor], factor: float | Tensor) -> list[Tensor]:
    """The gradients as they are where the factor is the number 1, else copies; see :func:`multiplied`."""
    takes_them = not isinstance(factor, Tensor) and factor == 1
    return list(grads) if takes_them else [multiplied(grad, factor) for grad in grads]


def selected_gradient(grad: Tensor, rank_code: Tensor, words: Tensor, selection: Selection) -> Tensor:
    """(m / p) * g: the gradient that AdamW sees (RoAST, section 3.2), in the dtype of ``grad``.

    Zero where an element is not kept, whatever its gradient. A finite gradient saturates at the range of its dtype; a
    non-finite one passes, as in AdamW.
    """
    working = torch.promote_types(grad.dtype, torch.float32)  # a factor of 2**32 is infinite in float16
    wide = grad.to(working)
    scaled = wide * _look_up(selection.rescaling, rank_code).to(working)
    largest = torch.finfo(grad.dtype).max
    scaled = torch.where(wide.isfinite(), scaled.clamp_(-largest, largest), wide).to(grad.dtype)
    return scaled.masked_fill_(~kept(rank_code, words, selection.thresholds), 0)


def _look_up(table: Tensor, rank_code: Tensor) -> Tensor:
    return table.index_select(0, rank_code.reshape(-1).to(torch.int32)).view(rank_code.shape)


# ------------------------------------------------------------------------------------------------- stochastic rounding


def stochastically_rounded(values: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 values in bfloat16 or float16, rounded up or down at random, so that the expectation is the value.

    A value that lies the fraction f of the way from one number of ``dtype`` to the next, away from zero, becomes that
    next number iff floor(f * 2**16) + bits >= 2**16 (Gupta et al., ICML 2015, section 3, with 16 random bits). What the
    dtype holds exactly stays. A value beyond its largest number is rounded to nearest, to that number or to infinity,
    whatever the bits; NaN and infinity pass.

    Args:
        bits: integers in [0, 2**16), of the shape of ``values``.
    """
    magnitude, bits = values.abs(), bits.to(torch.int32)
    pattern = magnitude.view(torch.int32)
    if dtype == torch.bfloat16:  # the upper half of a float32
        rounded = ((pattern + bits) >> 16 << 16).view(torch.float32)
    else:
        subnormal = magnitude < torch.finfo(torch.float16).tiny  # multiples of 2**-24
        normal = ((pattern + (bits >> 3)) >> 13 << 13).view(torch.float32)
        multiple = ((magnitude.where(subnormal, 0.0) * 2.0**40).to(torch.int32) + bits) >> 16
        rounded = torch.where(subnormal, multiple.to(torch.float32) * 2.0**-24, normal)
    return torch.where(magnitude <= torch.finfo(dtype).max, rounded.copysign(values), values).to(dtype)


def is_narrow(tensor: Tensor) -> bool:
    """Whether the tensor is of a dtype to which values can be rounded stochastically."""
    return tensor.dtype in (torch.bfloat16, torch.float16)


class RoundingBits(NamedTuple):
    """Random numbers in [0, 2**16), made of the one that is drawn for each element (:func:`draw_halves`).

    Attributes:
        parameter: that number, for the parameter.
        state: the same with its bytes exchanged, for all of its state. So the parameter's rounding hardly depends on
            that of the moments: the probability of any two of their outcomes together is off by 2**-8 at most.
    """

    parameter: Tensor
    state: Tensor


# ---------------------------------------------------------------------------------------------------------------- step


def roast_adamw_(rows: Sequence[StepRow], options: StepOptions) -> None:
    """One RoAST step over parameters: accumulate importance, draw, rescale, AdamW.

    Args:
        rows: the tensors of each parameter, with its gradient. The parameter is of a floating-point dtype; the step
            count is incremented here.
        options: the scalars.

    Raises:
        ValueError: the options ask for a tensor that a row lacks.
    """
    for row in rows:
        check_options([name for name, _ in row.tensors()], options)
    for row in rows:
        _step(row, options)


class _Plan(StepPlan):
    """Nothing is prepared: the tensors are used as they are, wherever they lie."""

    def facts_of(self, tensors: Sequence[Tensor]) -> object:
        return [(tensor.shape, tensor.device) for tensor in tensors]

    def fits(self, params: Sequence[Tensor], state: Sequence[Tensor]) -> bool:
        fitting = super().fits(params, state)
        self.check_memory()
        return fitting

    def accumulate(self, grads: Sequence[Tensor], gradient_factor: float | Tensor = 1.0) -> None:
        accumulate_importance_(self.importances(), all_multiplied(grads, gradient_factor))

    def step(self, grads: Sequence[Tensor], options: StepOptions) -> None:
        roast_adamw_(self.rows(grads), options)


def plan(rows: Sequence[StepRow]) -> StepPlan:
    """A plan for many steps with these rows."""
    return _Plan(rows)


def _step(row: StepRow, options: StepOptions) -> None:
    assert row.grad is not None
    step: float | Tensor
    if options.capturable:
        advance_counts_([row.step])
        step = row.step
    else:
        step = next_count(row.step.item())
        row.step.fill_(step)
    by_step: Word = step.to(torch.int64) & _MASK if isinstance(step, Tensor) else draw_number_of(step)
    selection = options.selection
    draw_number: Word = 0
    if selection is not None:
        draw_number = by_step if selection.draw_number is None else selection.draw_number
    used = {name: tensor for name, tensor in row.tensors() if TENSORS[name].per_element}
    for start, tensors in chunks(list(used.values())):
        chunk = dict(zip(used, tensors, strict=True))
        grad, moving = chunk["grad"], None
        if options.multiplies_gradients:
            grad = multiplied(grad, options.gradient_factor)
        bits = _rounding_bits(row.position, start, grad, by_step, options) if _rounds(row, options) else None
        if options.accumulate:
            _add_square_(chunk["importance"], grad, None if bits is None else bits.state)
        if selection is not None:
            words = draw_words(
                row.position, start, grad.numel(), seed=selection.seed, draw_number=draw_number, device=grad.device
            )
            if selection.acts_on == "gradient":
                grad = selected_gradient(grad, chunk["rank_code"], words, selection)
            else:
                moving = kept(chunk["rank_code"], words, selection.thresholds)
        adamw_(
            chunk["param"],
            -grad if options.maximize else grad,
            chunk["exp_avg"],
            chunk["exp_avg_sq"],
            chunk.get("max_exp_avg_sq"),
            step,
            pretrained=chunk["pretrained"] if options.returns_to_pretrained else None,
            pretrained_decay=_pretrained_decay(options, chunk) if options.returns_to_pretrained else 0.0,
            moving=moving,
            bits=bits if options.stochastic_rounding else None,
            lr=options.lr,
            beta1=options.beta1,
            beta2=options.beta2,
            eps=options.eps,
            weight_decay=options.weight_decay,
        )


def _rounds(row: StepRow, options: StepOptions) -> bool:
    """Whether anything of the row is rounded stochastically."""
    return (options.stochastic_rounding and (is_narrow(row.param) or is_narrow(row.exp_avg))) or (
        options.accumulate and row.importance is not None and is_narrow(row.importance)
    )


def _rounding_bits(
    position: Position, start: int, grad: Tensor, draw_number: Word, options: StepOptions
) -> RoundingBits:
    drawn = draw_halves(
        position, start, grad.numel(), seed=options.rounding_seed, draw_number=draw_number, device=grad.device
    ).view(grad.shape)
    return RoundingBits(drawn, (drawn & 0xFF) << 8 | drawn >> 8)


def _pretrained_decay(options: StepOptions, chunk: dict[str, Tensor]) -> float | Tensor:
    """The decay c w towards the pre-trained values, of all elements or, by rank, of each."""
    if options.pretrained_decay_by == "uniform" or options.selection is None:
        return options.pretrained_decay
    drop_probabilities = (2**32 - options.selection.thresholds).to(torch.float32) * 2.0**-32
    working = torch.promote_types(chunk["param"].dtype, torch.float32)
    return options.pretrained_decay * _look_up(drop_probabilities, chunk["rank_code"]).to(working)


def adamw_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: float | Tensor,
    *,
    lr: float | Tensor,
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float,
    weight_decay: float,
    pretrained: Tensor | None = None,
    pretrained_decay: float | Tensor = 0.0,
    moving: Tensor | None = None,
    bits: RoundingBits | None = None,
) -> None:
    """Decoupled weight decay, moments, bias correction, update (Loshchilov and Hutter, 2019, algorithm 2).

    The operations are those of ``torch.optim.AdamW(foreach=False)`` in the same order, so the results are equal bit
    for bit. ``step`` is a tensor under ``capturable``. Moments of another dtype than the parameter's: arithmetic in
    the wider of the two, each result rounded once.

    ``pretrained_decay`` draws the parameter to ``pretrained``, after the weight decay: theta <- theta - lr c w (theta -
    theta_0), where c w is a number or one per element. ``moving``: which elements the update moves; None: all.
    ``bits``: by which results of 16 bits are rounded, from float32 at least; None: each to nearest.
    """
    working = torch.promote_types(param.dtype, exp_avg.dtype)
    if bits is not None:
        working = torch.promote_types(working, torch.float32)
    if {param.dtype, grad.dtype, exp_avg.dtype} != {working}:
        stored = [t for t in (param, exp_avg, exp_avg_sq, max_exp_avg_sq) if t is not None]
        wide = [t.to(working, copy=True) for t in stored]
        maximum = wide[3] if max_exp_avg_sq is not None else None
        adamw_(
            wide[0], grad.to(working), wide[1], wide[2], maximum, step,
            lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
            pretrained=None if pretrained is None else pretrained.to(working), pretrained_decay=pretrained_decay,
            moving=moving,
        )  # fmt: skip
        for narrow, result in zip(stored, wide, strict=True):
            if bits is not None and is_narrow(narrow):
                own = bits.parameter if narrow is param else bits.state
                result = stochastically_rounded(result.to(torch.float32), own, narrow.dtype)
            narrow.copy_(result)
        return

    if weight_decay != 0:
        param.mul_(1 - lr * weight_decay)
    if pretrained is not None:
        param.sub_((param - pretrained).mul_(lr * pretrained_decay))
    unmoved = None if moving is None else param.clone()
    if isinstance(beta1, Tensor):
        exp_avg.lerp_(grad, 1 - beta1.to(device=param.device, dtype=param.dtype))
    else:
        exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)  # type: ignore[arg-type]
    if max_exp_avg_sq is not None:
        torch.maximum(max_exp_avg_sq, exp_avg_sq, out=max_exp_avg_sq)
    second_moment = exp_avg_sq if max_exp_avg_sq is None else max_exp_avg_sq

    bias_correction1 = 1 - beta1**step
    bias_correction2 = 1 - beta2**step
    if isinstance(step, Tensor):
        negative_step_size = (lr / bias_correction1).neg()
        denominator = second_moment.sqrt() / (bias_correction2.sqrt() * negative_step_size)
        param.addcdiv_(exp_avg, denominator.add_(eps / negative_step_size))
    else:
        denominator = (second_moment.sqrt() / bias_correction2**0.5).add_(eps)
        param.addcdiv_(exp_avg, denominator, value=-(lr / bias_correction1))  # type: ignore[arg-type]
    if moving is not None and unmoved is not None:
        param.copy_(torch.where(moving, param, unmoved))


# ---------------------------------------------------------------------------------------------------------- importance


def accumulate_importance_(importances: list[Tensor], grads: list[Tensor]) -> None:
    """Add the squared gradients: s <- fl(s + fl(g * g)) in float32, saturating; non-finite gradients add nothing.

    Two roundings: never ``addcmul_``, which is a fused multiply-add on some processors. Scores of bfloat16 are then
    rounded stochastically: to nearest a sum would stand still at 512 times what is added. No step is counted here, so
    the gradient and the score are the counter of the bits.
    """
    for importance, grad in zip(importances, grads, strict=True):
        for _, (score, g) in chunks([importance, grad]):
            bits = None
            if is_narrow(score):
                counter = (g.to(torch.float32), score.to(torch.float32))
                first, second = (each.view(torch.int32).to(torch.int64) & _MASK for each in counter)
                bits = torch.as_tensor(philox4x32((first, second, 0, 0), (0, 0))[0]) >> 16
            _add_square_(score, g, bits)


def _add_square_(score: Tensor, grad: Tensor, bits: Tensor | None) -> None:
    g, largest = grad.to(torch.float32), torch.finfo(score.dtype).max
    square = torch.where(g.isfinite(), g * g, 0.0)
    if is_narrow(score):
        assert bits is not None
        score.copy_(stochastically_rounded((score + square).clamp_(max=largest), bits, score.dtype))
    else:
        score.add_(square).clamp_(max=largest)


def histogram_(scores: list[Tensor], counts: Tensor) -> None:
    """Add the number of scores in each bin to ``counts``; the bin is the upper 17 bits of the float32, its sign zero.

    Bit patterns of non-negative floats are ordered like the floats, so bins are ordered like the scores they hold.
    """
    for score in scores:
        for _, (chunk,) in chunks([score]):
            counts += torch.bincount(_bins(chunk), minlength=HISTOGRAM_BINS).to(counts.device)


def assign_rank_codes_(importances: list[Tensor], rank_codes: list[Tensor], table: Tensor) -> None:
    """Write ``table[bin]`` into the rank codes and reset the importance scores to zero.

    All codes first, then all scores. Whoever interrupts it (Ctrl-C) finds it finished: half of it would leave scores of
    zero without the codes that they stood for.
    """

    def assign() -> None:
        for importance, rank_code in zip(importances, rank_codes, strict=True):
            local_table = table.to(importance.device)
            for _, (score, code) in chunks([importance, rank_code]):
                code.copy_(local_table.index_select(0, _bins(score)).view(code.shape))

    def reset() -> None:
        for importance in importances:
            importance.zero_()

    assigned = False
    try:
        assign()
        assigned = True
        reset()
    except BaseException:
        if not assigned:
            assign()
        reset()
        raise


def _bins(score: Tensor) -> Tensor:
    return score.to(torch.float32).contiguous().view(torch.int32).view(-1) >> 15


# -------------------------------------------------------------------------------------------------------------- chunks


def chunks(tensors: list[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
    """Views of equal shape on at most :data:`CHUNK` elements, in row-major order, each with its first element's index.

    The tensors need neither be contiguous nor have equal strides.
    """
    if tensors[0].numel() == 0:
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors = [tensor.view(-1) for tensor in tensors]
    yield from _chunks(tensors, 0)


def _chunks(tensors: list[Tensor], first: int) -> Iterator[tuple[int, list[Tensor]]]:
    numel = tensors[0].numel()
    if numel <= CHUNK:
        yield first, tensors
        return
    row = numel // tensors[0].shape[0]
    if row > CHUNK:
        for i in range(tensors[0].shape[0]):
            yield from _chunks([tensor[i] for tensor in tensors], first + i * row)
    else:
        rows = CHUNK // row
        for i in range(0, tensors[0].shape[0], rows):
            yield first + i * row, [tensor[i : i + rows] for tensor in tensors]
