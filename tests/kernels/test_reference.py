"""The reference's random words: Philox as published, and a word for every element wherever its tensor is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from roast_optim.kernels.reference import chunks, draw_words, philox4x32
from roast_optim.kernels.step import Position
from tests.oracles import philox

CPU = torch.device("cpu")


def test_philox_equals_the_published_known_answers(vectors: Callable[[str], Any]) -> None:
    for case in vectors("philox4x32_known_answers")["cases"]:
        c0, c1, c2, c3 = (int(word, 16) for word in case["counter"])
        low, high = (int(word, 16) for word in case["key"])
        expected = [int(word, 16) for word in case["words"]]
        assert list(philox4x32((c0, c1, c2, c3), (low, high), rounds=case["rounds"])) == expected
        d0, d1, d2, d3 = (torch.tensor([word, word]) for word in (c0, c1, c2, c3))
        words = philox4x32((d0, d1, d2, d3), (low, high), rounds=case["rounds"])
        assert [torch.as_tensor(word).tolist() for word in words] == [[word, word] for word in expected]


def test_philox_takes_numbers_and_tensors_of_several_shapes() -> None:
    blocks = torch.arange(12).view(3, 4)
    words = philox4x32((blocks, 0, 7, 9), (1, 2))
    expected = philox.philox4x32((blocks.numpy(), 0, 7, 9), (1, 2), rounds=7)
    for word, oracle in zip(words, expected, strict=True):
        assert torch.equal(torch.as_tensor(word), torch.from_numpy(oracle.astype(np.int64)))


def test_words_equal_the_vectors(vectors: Callable[[str], Any]) -> None:
    """Elements beyond 2^34 need the upper word of the block number."""
    for case in vectors("draw"):
        expected = [int(word, 16) for word in case["words"]]
        place = Position(case["parameter_id"], case["first_element"], len(expected), 0)
        words = draw_words(place, 0, len(expected), seed=case["seed"], draw_number=case["draw_number"], device=CPU)
        assert words.tolist() == expected


def test_words_do_not_depend_on_where_a_chunk_begins() -> None:
    whole = torch.from_numpy(philox.random_words(5, 2, 3, np.arange(40)).astype(np.int64))
    place = Position.whole(2, 40)
    for start in range(40):
        for count in (1, 2, 5, 40 - start):
            words = draw_words(place, start, min(count, 40 - start), seed=5, draw_number=3, device=CPU)
            assert torch.equal(words, whole[start : start + count])


def test_words_across_the_limit_of_32_bits_of_the_block_number() -> None:
    first = 2**34 - 6
    expected = philox.random_words(5, 2, 3, np.arange(first, first + 12)).astype(np.int64).tolist()
    assert draw_words(Position(2, first, 12, 0), 0, 12, seed=5, draw_number=3, device=CPU).tolist() == expected
    rows = Position(2, first, 3, 2**33)
    elements = first + np.arange(9) // 3 * 2**33 + np.arange(9) % 3
    expected = philox.random_words(5, 2, 3, elements).astype(np.int64).tolist()
    assert draw_words(rows, 0, 9, seed=5, draw_number=3, device=CPU).tolist() == expected


@pytest.mark.parametrize(("first", "inner", "stride"), [(0, 3, 7), (5, 1, 2), (2, 4, 8), (11, 6, 6), (3, 5, 1000)])
def test_words_of_a_shard_are_those_of_its_elements(first: int, inner: int, stride: int) -> None:
    count = 4 * inner
    elements = first + np.arange(count) // inner * stride + np.arange(count) % inner
    expected = torch.from_numpy(philox.random_words(1, 0, 2, elements).astype(np.int64))
    place = Position(0, first, inner, stride)
    for start in range(count):
        for end in (start + 1, (start + count) // 2 + 1, count):
            words = draw_words(place, start, end - start, seed=1, draw_number=2, device=CPU)
            assert torch.equal(words, expected[start:end])


def test_a_draw_number_on_the_device_gives_the_same_words() -> None:
    place = Position.whole(0, 9)
    number, tensor = (draw_words(place, 0, 9, seed=1, draw_number=n, device=CPU) for n in (6, torch.tensor(6)))
    assert torch.equal(number, tensor)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (600_001,), (3, 300_000), (523, 1_031), (1, 1, 600_000)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_chunks_cover_every_element_once_in_row_major_order(shape: tuple[int, ...], contiguous: bool) -> None:
    values = torch.arange(torch.Size(shape).numel()).view(shape)
    laid_out = values if contiguous else torch.stack([values, values], -1)[..., 0]
    expected_first = 0
    for first, (chunk, other) in chunks([laid_out, values]):
        assert first == expected_first
        assert 0 < chunk.numel() <= 1 << 18
        assert torch.equal(chunk.reshape(-1), torch.arange(first, first + chunk.numel()))
        assert torch.equal(chunk, other)
        expected_first += chunk.numel()
    assert expected_first == values.numel()
