"""The oracles themselves: against published answers, the stored vectors, exact arithmetic and plain formulas."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from tests.oracles import philox, ranks
from tests.oracles.roast_adamw import Group, RoastAdamWOracle


def words(row: list[str]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.array([int(word, 16) for word in row], np.uint32)


def test_philox_equals_the_published_known_answers(vectors: Callable[[str], Any]) -> None:
    cases = vectors("philox4x32_known_answers")["cases"]
    assert sorted({case["rounds"] for case in cases}) == [7, 10]
    for case in cases:
        counter, key, expected = ([int(word, 16) for word in case[part]] for part in ("counter", "key", "words"))
        output = philox.philox4x32(tuple(counter), tuple(key), case["rounds"])  # type: ignore[arg-type]
        assert [int(word) for word in output] == expected


def test_vectors_are_those_of_the_oracles(vectors: Callable[[str], Any]) -> None:
    for case in vectors("draw"):
        elements = np.arange(case["first_element"], case["first_element"] + 16)
        drawn = philox.random_words(case["seed"], case["parameter_id"], case["draw_number"], elements)
        np.testing.assert_array_equal(drawn, words(case["words"]))
    for case in vectors("thresholds"):
        np.testing.assert_array_equal(philox.thresholds(case["alpha"], case["beta"]), words(case["thresholds"]))
        factors = philox.rescaling_factors(case["alpha"], case["beta"])
        np.testing.assert_array_equal(factors.view(np.uint32), words(case["rescaling_factors"]))
    for case in vectors("rank_codes"):
        histogram = dict(zip(case["bins"], case["counts"], strict=True))
        assert list(ranks.rank_codes_of_histogram(histogram).values()) == case["rank_codes"]
    for case in vectors("scores"):
        codes = ranks.percentile_rank_codes([words(bits).view(np.float32) for bits in case["scores"]])
        assert [array.tolist() for array in codes] == case["rank_codes"]
    case = vectors("importance")
    before, gradient = (words(case[key]).view(np.float32) for key in ("before", "gradient"))
    np.testing.assert_array_equal(ranks.accumulated(before, gradient).view(np.uint32), words(case["after"]))


def test_importance_rounds_twice_and_the_vectors_would_notice_a_fused_multiply_add(
    vectors: Callable[[str], Any],
) -> None:
    case = vectors("importance")
    before, gradient, after = (words(case[key]).view(np.float32)[:500] for key in ("before", "gradient", "after"))
    fused = (before.astype(np.longdouble) + gradient.astype(np.longdouble) ** 2).astype(np.float32)
    assert 10 < (fused != after).sum() < 250


def test_rescaling_factors_are_nearest_to_the_exact_quotient() -> None:
    factors = philox.rescaling_factors(0.9, 10.0)
    for factor, threshold in zip(factors, philox.thresholds(0.9, 10.0), strict=True):
        exact = Fraction(2**32, int(threshold))
        distance = abs(Fraction(float(factor)) - exact)
        for neighbour in (np.nextafter(factor, np.float32(0)), np.nextafter(factor, np.float32(np.inf))):
            assert distance <= abs(Fraction(float(neighbour)) - exact)


def test_a_first_adamw_step_moves_every_element_by_the_learning_rate() -> None:
    parameter = np.array([1.0, -2.0, 3.0])
    oracle = RoastAdamWOracle([Group([parameter], lr=0.1, eps=0.0, weight_decay=0.5)])
    oracle.step([[np.array([5.0, -7.0, 1e-6])]])
    np.testing.assert_allclose(parameter, 0.95 * np.array([1.0, -2.0, 3.0]) - 0.1 * np.array([1, -1, 1]), rtol=1e-14)


def test_masked_gradients_are_unbiased() -> None:
    """Over many steps the mean of the gradient that AdamW sees is the gradient."""
    parameter = np.zeros(500)
    oracle = RoastAdamWOracle([Group([parameter], betas=(0.0, 0.9), alpha=0.5, beta=2.0)])
    gradient = np.linspace(1.0, 2.0, 500)
    oracle.step([[gradient]])
    oracle.refresh()
    steps, total = 400, np.zeros(500)
    for _ in range(steps):
        oracle.step([[gradient]])
        state = oracle.groups[0].states[0]
        assert state is not None
        total += state.exp_avg / gradient
    assert state is not None
    probability = philox.thresholds(0.5, 2.0)[state.rank_code] / 2**32
    standard_error = np.sqrt(((1 - probability) / probability).sum() / steps) / 500
    assert abs((total / steps).mean() - 1) <= 4 * standard_error
