"""Random words, one per element, and the masks that they decide: the definition of every backend's draw."""

from __future__ import annotations

import torch
from torch import Tensor

from ..step import Position, Selection

Word = int | Tensor  # 32 bits, as a Python int or in an int64 tensor

WORD = 0xFFFFFFFF  # what of a number stays in a word
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# What a draw is for: the highest bit of the block number's 64, of which elements of a parameter take 61 at most. So two
# draws of one seed never meet.
FOR_MASKS = 0
FOR_ROUNDING = 1 << 31


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
        c0, c1 = ((product1 >> 32) & WORD) ^ c1 ^ k0, product1 & WORD
        c2, c3 = ((product0 >> 32) & WORD) ^ c3 ^ k1, product0 & WORD
        k0, k1 = (k0 + _WEYL[0]) & WORD, (k1 + _WEYL[1]) & WORD
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
    key = (seed & WORD, seed >> 32)
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
    counter = (blocks & WORD, upper, position.parameter_id, draw_number)
    drawn = torch.stack([torch.as_tensor(word, device=device) for word in philox4x32(counter, key)], dim=1)
    if purpose == FOR_ROUNDING:
        drawn = torch.stack([drawn & 0xFFFF, drawn >> 16], dim=2).flatten(1)
    if row == last_row:
        return drawn.view(-1)[begin % size : begin % size + count]
    return drawn.gather(1, (elements % size).unsqueeze(1)).squeeze(1)


def kept(rank_code: Tensor, words: Tensor, thresholds: Tensor) -> Tensor:
    """Which elements are updated: bool, shaped like ``rank_code`` (uint8)."""
    return words.view(rank_code.shape) < look_up(thresholds, rank_code)


def selected_gradient(grad: Tensor, rank_code: Tensor, words: Tensor, selection: Selection) -> Tensor:
    """(m / p) * g: the gradient that AdamW sees (RoAST, section 3.2), in the dtype of ``grad``.

    Zero where an element is not kept, whatever its gradient. A finite gradient saturates at the range of its dtype; a
    non-finite one passes, as in AdamW.
    """
    working = torch.promote_types(grad.dtype, torch.float32)  # a factor of 2**32 is infinite in float16
    wide = grad.to(working)
    scaled = wide * look_up(selection.rescaling, rank_code).to(working)
    largest = torch.finfo(grad.dtype).max
    scaled = torch.where(wide.isfinite(), scaled.clamp_(-largest, largest), wide).to(grad.dtype)
    return scaled.masked_fill_(~kept(rank_code, words, selection.thresholds), 0)


def look_up(table: Tensor, rank_code: Tensor) -> Tensor:
    """The entry of each rank code in a table of 256, shaped like the codes."""
    return table.index_select(0, rank_code.reshape(-1).to(torch.int32)).view(rank_code.shape)
