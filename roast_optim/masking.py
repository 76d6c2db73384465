"""Keep probabilities and the random draw: the definition that every backend matches bit for bit.

An element with rank code c is kept in a draw iff its random word is below ``keep_thresholds(alpha, beta)[c]``. No mask
is stored anywhere: a draw is recomputed from seed, parameter, element and draw number.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache

import torch
from torch import Tensor

from .kernels.capture import capturing
from .kernels.reference import chunks, draw_words, kept, philox4x32
from .kernels.step import RANK_CODES, Position

_WORDS = 2**32
_FLAT = Decimal(64)  # beyond +-64 the logistic function is 0 or 1 to more than 2**-32


@lru_cache(maxsize=64)
def keep_thresholds(alpha: float, beta: float) -> Tensor:
    """round(p * 2**32) per rank code, in [1, 2**32 - 1]; int64 ``[256]`` on the CPU, not to be written to.

    p = 1 / (1 + exp(-2 * beta * (r - alpha))) with r = (code + 0.5) / 256 (RoAST, equation 6). Computed in decimal
    arithmetic on the exact values of ``alpha`` and ``beta``: the mathematics library of the machine, which may round
    exp either way, has no say in the masks.
    """
    alpha, beta = float(alpha), float(beta)  # NumPy's numbers and fractions too
    context = Context(prec=50, rounding=ROUND_HALF_EVEN)
    thresholds = []
    for code in range(RANK_CODES):
        rank = context.divide(Decimal(2 * code + 1), Decimal(2 * RANK_CODES))
        logit = context.multiply(Decimal(2 * beta), context.subtract(rank, Decimal(alpha)))
        decay = context.exp(-max(-_FLAT, min(_FLAT, logit)))
        threshold = context.divide(Decimal(_WORDS), context.add(Decimal(1), decay)).to_integral_value(ROUND_HALF_EVEN)
        thresholds.append(min(max(int(threshold), 1), _WORDS - 1))
    return torch.tensor(thresholds, dtype=torch.int64, device="cpu")


def keep_probabilities(alpha: float, beta: float) -> Tensor:
    """The probability, as drawn, that an element is updated, per rank code: threshold / 2**32, float64 ``[256]``."""
    return keep_thresholds(alpha, beta).double() / _WORDS


@lru_cache(maxsize=64)
def rescaling_factors(alpha: float, beta: float) -> Tensor:
    """1 / p for the p that is drawn, per rank code, so that E[m / p] = 1; float32 ``[256]`` on the CPU."""
    return (_WORDS / keep_thresholds(alpha, beta).double()).float()


@lru_cache(maxsize=256)
def selection_tables(alpha: float, beta: float, rescale: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Thresholds and rescaling factors on ``device``, made once; without rescaling the factors are one.

    The copies have arrived when this returns, so that every stream can read them.

    Raises:
        RuntimeError: a CUDA graph is being captured, to which nothing can be copied from the host.
    """
    if device.type == "cuda" and capturing():
        raise RuntimeError(
            f"RoastAdamW: alpha={alpha} and beta={beta} are new on {device}, and a CUDA graph that is being captured "
            "cannot wait for their tables: take one step with them before the capture"
        )
    thresholds = keep_thresholds(alpha, beta)
    factors = rescaling_factors(alpha, beta) if rescale else torch.ones(RANK_CODES, device="cpu")
    return thresholds.to(device), factors.to(device)


def keep_mask(
    rank_codes: Tensor,
    alpha: float,
    beta: float,
    *,
    seed: int,
    draw_number: int,
    parameter_id: int = 0,
    position: Position | None = None,
) -> Tensor:
    """The mask of one draw: bool, shaped like ``rank_codes`` (uint8).

    Args:
        rank_codes: uint8.
        alpha, beta: options of the parameter's group.
        seed: key of the draw, 0 <= seed < 2**64.
        draw_number: the parameter's step after increment (mask_schedule="step") or its group's refreshes ("refresh").
        parameter_id: index of the parameter in the optimizer's state_dict, if ``rank_codes`` is the whole parameter.
        position: where ``rank_codes`` lies in the whole parameter otherwise.
    """
    position = position or Position.whole(parameter_id, rank_codes.numel())
    mask = torch.empty_like(rank_codes, dtype=torch.bool)
    thresholds = keep_thresholds(alpha, beta).to(rank_codes.device)
    for start, (codes, out) in chunks([rank_codes, mask]):
        words = draw_words(position, start, codes.numel(), seed=seed, draw_number=draw_number, device=rank_codes.device)
        out.copy_(kept(codes, words, thresholds))
    return mask


def keep_mask_of_many(
    rank_codes: Tensor,
    counts: list[int],
    draw_numbers: list[int],
    positions: list[Position],
    *,
    alpha: float,
    beta: float,
    seed: int,
) -> Tensor:
    """The masks of :func:`keep_mask` of many small parameters in one pass: bool, shaped like ``rank_codes``.

    Args:
        rank_codes: uint8 ``[sum of counts]``, of one parameter after the other.
        counts, draw_numbers, positions: of each parameter.
        alpha, beta, seed: options of the parameters' group.
    """
    device = rank_codes.device
    repeats = torch.tensor(counts, device=device)

    def of_elements(numbers: Iterable[int]) -> Tensor:
        return torch.tensor([*numbers], dtype=torch.int64, device=device).repeat_interleave(repeats)

    index = torch.arange(rank_codes.numel(), device=device) - (repeats.cumsum(0) - repeats).repeat_interleave(repeats)
    first, inner, stride = (
        of_elements(getattr(position, name) for position in positions)
        for name in ("first_index", "inner_length", "outer_stride")
    )
    elements = first + index.div(inner, rounding_mode="floor") * stride + index % inner
    blocks = elements >> 2
    ids = of_elements(position.parameter_id for position in positions)
    counter = (blocks & (_WORDS - 1), blocks >> 32, ids, of_elements(draw_numbers))
    drawn = philox4x32(counter, (seed & (_WORDS - 1), seed >> 32))
    words = torch.stack([torch.as_tensor(word, device=device) for word in drawn])
    return kept(rank_codes, words.gather(0, (elements & 3).unsqueeze(0))[0], keep_thresholds(alpha, beta).to(device))
