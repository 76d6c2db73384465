"""The random draws on the GPU, by Philox4x32 with 7 rounds: :func:`..reference.draw_words` and ``draw_halves``."""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four random words from a counter and a key, all uint32 (Salmon et al., SC 2011, section 4.2)."""
    for _ in tl.static_range(7):
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = product1.to(tl.uint32)
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = product0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


# What a draw is for, in the highest bit of the block number's 64, of which elements of a parameter take 61 at most.
FOR_MASKS = tl.constexpr(0)
FOR_ROUNDING = tl.constexpr(1 << 31)


@triton.jit
def words_of_run(first, parameter, draw, k0, k1, BLOCK: tl.constexpr):
    """The words for the masks of BLOCK elements that lie side by side in the whole; ``first`` is a multiple of four.

    One Philox call per four elements: every thread makes the words of its own four, none is exchanged.
    """
    blocks = first // 4 + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = philox4x32(blocks.to(tl.uint32), _upper(blocks, FOR_MASKS), parameter, draw, k0, k1)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def halves_of_run(first, parameter, draw, k0, k1, BLOCK: tl.constexpr):
    """The 16 bits for rounding of each of these elements.

    Eight have a Philox block in common. Still there is a call per four, which are a thread's own: that both threads
    make the block costs less than it would to exchange its halves.
    """
    fours = first // 4 + tl.arange(0, BLOCK // 4)
    blocks = fours >> 1
    w0, w1, w2, w3 = philox4x32(blocks.to(tl.uint32), _upper(blocks, FOR_ROUNDING), parameter, draw, k0, k1)
    are_first = (fours & 1) == 0
    left, right = tl.where(are_first, w0, w2), tl.where(are_first, w1, w3)
    return tl.interleave(tl.interleave(left & 0xFFFF, right & 0xFFFF), tl.interleave(left >> 16, right >> 16))


@triton.jit
def words_of_shard(start, first, inner_length, outer_stride, parameter, draw, k0, k1, BLOCK: tl.constexpr):
    """The words for the masks of local elements ``start .. start + BLOCK - 1`` of a shard that lies anywhere."""
    whole = _elements_of_shard(start, first, inner_length, outer_stride, BLOCK)
    return _own_words(whole >> 2, whole, parameter, draw, k0, k1, FOR_MASKS)


@triton.jit
def halves_of_shard(start, first, inner_length, outer_stride, parameter, draw, k0, k1, BLOCK: tl.constexpr):
    """The 16 bits for rounding of each of these elements."""
    whole = _elements_of_shard(start, first, inner_length, outer_stride, BLOCK)
    words = _own_words(whole >> 3, whole >> 1, parameter, draw, k0, k1, FOR_ROUNDING)
    return tl.where((whole & 1) == 0, words & 0xFFFF, words >> 16)


@triton.jit
def _elements_of_shard(start, first, inner_length, outer_stride, BLOCK: tl.constexpr):
    """Where local elements ``start .. start + BLOCK - 1`` lie in the whole parameter, int64."""
    row = start // inner_length
    column = start - row * inner_length
    # Within the block 32 bits suffice: the elements of the first row, then rows of inner_length.
    length = tl.minimum(inner_length, BLOCK).to(tl.int32)
    left = tl.minimum(inner_length - column, BLOCK).to(tl.int32)
    local = tl.arange(0, BLOCK)
    rows = tl.where(local < left, 0, (local - left) // length + 1)
    return first + row * outer_stride + column + local + rows * (outer_stride - inner_length)


@triton.jit
def _own_words(blocks, numbers, parameter, draw, k0, k1, PURPOSE: tl.constexpr):
    """Of the block of each element the word of its number, which counts modulo four."""
    w0, w1, w2, w3 = philox4x32(blocks.to(tl.uint32), _upper(blocks, PURPOSE), parameter, draw, k0, k1)
    is_even = (numbers & 1) == 0
    return tl.where((numbers & 2) == 0, tl.where(is_even, w0, w1), tl.where(is_even, w2, w3))


@triton.jit
def _upper(blocks, PURPOSE: tl.constexpr):
    return (blocks >> 32).to(tl.uint32) | tl.full((), PURPOSE, tl.uint32)
