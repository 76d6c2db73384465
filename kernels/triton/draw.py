"""The random draw on the GPU: Philox4x32 with 7 rounds, the words of :func:`..reference.draw_words`."""

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
def words_of_run(first, parameter, draw, k0, k1, PURPOSE: tl.constexpr, BLOCK: tl.constexpr):
    """The words of BLOCK elements that lie side by side in the whole parameter; ``first`` is a multiple of four.

    One Philox call per four elements: every thread makes the words of its own four, none is exchanged.
    """
    blocks = first // 4 + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = philox4x32(blocks.to(tl.uint32), _upper(blocks, PURPOSE), parameter, draw, k0, k1)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def words_of_shard(
    start, first, inner_length, outer_stride, parameter, draw, k0, k1, PURPOSE: tl.constexpr, BLOCK: tl.constexpr
):
    """The words of local elements ``start .. start + BLOCK - 1`` of a shard that lies anywhere in its parameter."""
    row = start // inner_length
    column = start - row * inner_length
    # Within the block 32 bits suffice: the elements of the first row, then rows of inner_length.
    length = tl.minimum(inner_length, BLOCK).to(tl.int32)
    left = tl.minimum(inner_length - column, BLOCK).to(tl.int32)
    local = tl.arange(0, BLOCK)
    rows = tl.where(local < left, 0, (local - left) // length + 1)
    whole = first + row * outer_stride + column + local + rows * (outer_stride - inner_length)
    blocks = whole >> 2
    w0, w1, w2, w3 = philox4x32(blocks.to(tl.uint32), _upper(blocks, PURPOSE), parameter, draw, k0, k1)
    return tl.where((whole & 2) == 0, tl.where((whole & 1) == 0, w0, w1), tl.where((whole & 1) == 0, w2, w3))


@triton.jit
def _upper(blocks, PURPOSE: tl.constexpr):
    return (blocks >> 32).to(tl.uint32) | tl.full((), PURPOSE, tl.uint32)
