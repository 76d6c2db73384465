"""Percentile ranks by histogram: equal to the vectors, close to the exact mid-rank, whatever the distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roast_optim.importance import percentile_ranks, rank_code_table
from tests.oracles import ranks

COUNT = 200_000


def floats(bits: list[str]) -> torch.Tensor:
    return torch.from_numpy(np.array([int(word, 16) for word in bits], np.uint32).view(np.float32))


def distributions() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    random = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        cases = {
            "log-normal": np.exp(random.standard_normal(COUNT)),
            "wide log-normal": np.exp(8 * random.standard_normal(COUNT)),
            "heavy-tailed": np.minimum(random.standard_cauchy(COUNT) ** 4, ranks.LARGEST_FLOAT32),
            "uniform": random.random(COUNT),
            "constant": np.full(COUNT, 0.3),
            "all zero": np.zeros(COUNT),
            "half zero": np.where(random.random(COUNT) < 0.5, 0.0, random.random(COUNT)),
            "two values": np.where(random.random(COUNT) < 0.1, 1e-12, 5.0),
            "denormal": random.random(COUNT) * np.finfo(np.float32).smallest_normal,
            "saturated": np.where(random.random(COUNT) < 0.3, ranks.LARGEST_FLOAT32, random.random(COUNT)),
            "few elements": np.array([3.0, 1.0, 2.0]),
            "one element": np.array([1.0]),
        }
    return {name: values.astype(np.float32) for name, values in cases.items()}


@pytest.mark.parametrize("name", distributions())
def test_rank_codes_are_close_to_the_exact_mid_rank(name: str) -> None:
    scores = distributions()[name]
    (codes,) = percentile_ranks([torch.from_numpy(scores)])
    assert codes.dtype == torch.uint8
    error = np.abs((codes.numpy() + 0.5) / 256 - ranks.exact_mid_ranks(scores))
    assert error.max() <= 1 / 256 + 5e-4
    np.testing.assert_array_equal(codes.numpy(), ranks.percentile_rank_codes([scores])[0])


def test_rank_code_table_equals_the_vectors(vectors: Callable[[str], Any]) -> None:
    for case in vectors("rank_codes"):
        histogram = torch.zeros(65536, dtype=torch.int64)
        histogram[case["bins"]] = torch.tensor(case["counts"])
        table = rank_code_table(histogram)
        assert (table.dtype, table.shape) == (torch.uint8, (65536,))
        assert table[case["bins"]].tolist() == case["rank_codes"], case["name"]
        assert histogram.sum().item() == sum(case["counts"])  # it was not changed


def test_percentile_ranks_equal_the_vectors(vectors: Callable[[str], Any]) -> None:
    for case in vectors("scores"):
        codes = percentile_ranks([floats(bits) for bits in case["scores"]])
        assert [array.tolist() for array in codes] == case["rank_codes"], case["name"]


@settings(max_examples=settings.default.max_examples // 2)
@given(st.dictionaries(st.integers(0, 65535), st.integers(1, 2**40), min_size=1, max_size=40))
def test_rank_code_table_equals_the_definition_for_any_histogram(counts: dict[int, int]) -> None:
    histogram = torch.zeros(65536, dtype=torch.int64)
    histogram[list(counts)] = torch.tensor(list(counts.values()))
    table = rank_code_table(histogram)
    for occupied, code in ranks.rank_codes_of_histogram(counts).items():
        assert table[occupied].item() == code


def test_ranks_are_over_all_tensors_together_and_independent_of_their_shapes() -> None:
    scores = torch.rand(5_000, generator=torch.Generator().manual_seed(0))
    (whole,) = percentile_ranks([scores])
    parts = percentile_ranks([scores[:7], scores[7:7], scores[7], scores[8:1_008].view(10, 100), scores[1_008:]])
    assert [part.shape for part in parts] == [(7,), (0,), (), (10, 100), (3_992,)]
    assert torch.equal(whole, torch.cat([part.reshape(-1) for part in parts]))


def test_ranks_do_not_depend_on_the_memory_layout() -> None:
    scores = torch.rand(700, 900, generator=torch.Generator().manual_seed(0))
    (expected,) = percentile_ranks([scores])
    assert torch.equal(expected, percentile_ranks([scores.T.contiguous().T])[0])
    assert torch.equal(expected, percentile_ranks([torch.stack([scores, scores], -1)[..., 0]])[0])


def test_scores_are_not_changed() -> None:
    scores = torch.rand(100)
    before = scores.clone()
    percentile_ranks([scores])
    assert torch.equal(before, scores)


def test_equal_scores_have_equal_ranks_and_larger_scores_no_smaller_ones() -> None:
    scores = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).mul(50).floor()
    (codes,) = percentile_ranks([scores])
    order = scores.argsort()
    assert (codes[order].int().diff() >= 0).all()
    for value in scores.unique():
        assert codes[scores == value].unique().numel() == 1


def test_scores_half_a_percent_apart_are_told_apart() -> None:
    scores = torch.cumprod(torch.full((256,), 1.005, dtype=torch.float64), 0).float()
    (codes,) = percentile_ranks([scores])
    assert codes.tolist() == list(range(256))
