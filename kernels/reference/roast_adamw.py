"""The RoAST step over parameters, chunk by chunk: importance, masks, rescaling, AdamW."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..plan import check_options
from ..step import TENSORS, Position, StepOptions, StepRow, advance_counts_, draw_number_of, next_count
from .chunking import chunks
from .draw import WORD, Word, draw_halves, draw_words, kept, look_up, selected_gradient
from .gradient_factor import multiplied
from .importance import add_square_
from .rounding import RoundingBits, is_narrow, stochastically_rounded


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


def _step(row: StepRow, options: StepOptions) -> None:
    assert row.grad is not None
    step: float | Tensor
    if options.capturable:
        advance_counts_([row.step])
        step = row.step
    else:
        step = next_count(row.step.item())
        row.step.fill_(step)
    by_step: Word = step.to(torch.int64) & WORD if isinstance(step, Tensor) else draw_number_of(step)
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
            add_square_(chunk["importance"], grad, None if bits is None else bits.state)
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
    return options.pretrained_decay * look_up(drop_probabilities, chunk["rank_code"]).to(working)


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
