"""Keep probabilities, and a draw that has them: exact tables, exact words, and the statistics of 10^6 elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roast_optim.masking import keep_mask, keep_probabilities, keep_thresholds, rescaling_factors
from tests.oracles import philox

MILLION = 10**6


def words_of(row: list[str]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.array([int(word, 16) for word in row], np.uint32)


# -------------------------------------------------------------------------------------------------------------- tables


def test_tables_equal_the_vectors(vectors: Callable[[str], Any]) -> None:
    for case in vectors("thresholds"):
        alpha, beta = case["alpha"], case["beta"]
        thresholds, factors = keep_thresholds(alpha, beta), rescaling_factors(alpha, beta)
        assert (thresholds.dtype, thresholds.shape) == (torch.int64, (256,))
        assert (factors.dtype, factors.shape) == (torch.float32, (256,))
        np.testing.assert_array_equal(thresholds.numpy(), words_of(case["thresholds"]).astype(np.int64))
        np.testing.assert_array_equal(factors.numpy().view(np.uint32), words_of(case["rescaling_factors"]))


@settings(max_examples=settings.default.max_examples // 3)
@given(alpha=st.floats(0, 1), beta=st.floats(1e-6, 1e3))
def test_tables_are_correctly_rounded(alpha: float, beta: float) -> None:
    np.testing.assert_array_equal(keep_thresholds(alpha, beta).numpy(), philox.thresholds(alpha, beta).astype(np.int64))
    np.testing.assert_array_equal(rescaling_factors(alpha, beta).numpy(), philox.rescaling_factors(alpha, beta))


@pytest.mark.parametrize(("alpha", "beta"), [(0.9, 10.0), (0.6, 1.0), (0.0, 1e6), (1.0, 1e300), (0.5, 1e-300)])
def test_probabilities_follow_the_formula_and_never_reach_zero_or_one(alpha: float, beta: float) -> None:
    probabilities = keep_probabilities(alpha, beta)
    assert (probabilities.dtype, probabilities.shape) == (torch.float64, (256,))
    assert torch.equal(probabilities, keep_thresholds(alpha, beta).double() / 2**32)
    assert (probabilities > 0).all()
    assert (probabilities < 1).all()
    assert (probabilities.diff() >= 0).all()
    rank = (np.arange(256) + 0.5) / 256
    with np.errstate(over="ignore"):
        exact = 1 / (1 + np.exp(-2 * beta * (rank - alpha)))
    np.testing.assert_allclose(probabilities.numpy(), exact, rtol=0, atol=2**-32)


def test_rescaling_is_the_inverse_of_the_probability_that_is_drawn() -> None:
    """Not of the unrounded one, which at alpha = 0.9, beta = 10 differs by as much as 0.5%."""
    product = keep_probabilities(0.9, 10.0) * rescaling_factors(0.9, 10.0).double()
    assert (product - 1).abs().max() <= 2**-24


# ---------------------------------------------------------------------------------------------------------------- draw


@pytest.mark.parametrize("seed", [0, 2**32 + 5, 2**64 - 1])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (13, 5), (2, 3, 4)], ids=str)
def test_masks_equal_the_oracle(seed: int, shape: tuple[int, ...]) -> None:
    codes = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for parameter_id, draw_number in ((0, 1), (5, 1000), (2**31, 2**32 - 1)):
        mask = keep_mask(codes, 0.5, 2.0, seed=seed, parameter_id=parameter_id, draw_number=draw_number)
        expected = philox.keep_mask(
            codes.numpy(), 0.5, 2.0, seed=seed, parameter_id=parameter_id, draw_number=draw_number
        )
        assert mask.dtype == torch.bool
        np.testing.assert_array_equal(mask.numpy(), expected)


def test_masks_equal_the_oracle_on_a_parameter_of_several_chunks() -> None:
    codes = torch.randint(256, (1_003, 997), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for laid_out in (codes, codes.T.contiguous().T):
        mask = keep_mask(laid_out, 0.9, 10.0, seed=3, parameter_id=1, draw_number=2)
        expected = philox.keep_mask(codes.numpy(), 0.9, 10.0, seed=3, parameter_id=1, draw_number=2)
        np.testing.assert_array_equal(mask.numpy(), expected)


@pytest.mark.parametrize(("alpha", "beta"), [(0.9, 10.0), (0.6, 1.0), (0.8, 5.0)])
def test_the_share_kept_is_the_probability_at_every_rank_code(alpha: float, beta: float) -> None:
    codes = (torch.arange(MILLION) % 256).to(torch.uint8)
    kept, draws = torch.zeros(256, dtype=torch.float64), 4
    for draw_number in range(1, draws + 1):
        mask = keep_mask(codes, alpha, beta, seed=1, parameter_id=0, draw_number=draw_number)
        kept += torch.bincount(codes[mask], minlength=256)
    count = draws * torch.bincount(codes, minlength=256)
    probability = keep_probabilities(alpha, beta)
    standard_error = (probability * (1 - probability) / count).sqrt()
    assert ((kept / count - probability).abs() <= 4 * standard_error).all()


@pytest.mark.parametrize("code", [100, 200, 230, 255])
def test_the_share_kept_among_a_million_elements_of_one_rank_code(code: int) -> None:
    mask = keep_mask(torch.full((MILLION,), code, dtype=torch.uint8), 0.9, 10.0, seed=2, parameter_id=0, draw_number=1)
    probability = keep_probabilities(0.9, 10.0)[code].item()
    assert abs(mask.double().mean().item() - probability) <= 4 * (probability * (1 - probability) / MILLION) ** 0.5


@pytest.mark.parametrize(("alpha", "beta"), [(0.9, 10.0), (0.6, 1.0), (0.8, 5.0)])
def test_the_mean_of_mask_over_probability_is_one(alpha: float, beta: float) -> None:
    codes = (torch.arange(MILLION) % 256).to(torch.uint8)
    probability = keep_probabilities(alpha, beta)[codes.long()]
    mask = keep_mask(codes, alpha, beta, seed=3, parameter_id=0, draw_number=1)
    rescaled = mask * rescaling_factors(alpha, beta)[codes.long()].double()
    standard_error = ((1 - probability) / probability).sum().sqrt().item() / MILLION
    assert abs(rescaled.mean().item() - 1) <= 4 * standard_error


def test_draws_at_other_steps_parameters_seeds_and_elements_are_uncorrelated() -> None:
    codes = torch.zeros(MILLION, dtype=torch.uint8)

    def draw(seed: int = 0, parameter_id: int = 0, draw_number: int = 1) -> torch.Tensor:
        mask = keep_mask(codes, 0.5 / 256, 1.0, seed=seed, parameter_id=parameter_id, draw_number=draw_number)
        return 2.0 * mask - 1.0  # p is one half

    first = draw()
    others = [draw(draw_number=n) for n in (2, 3, 4, 2**16)] + [draw(parameter_id=n) for n in (1, 2, 3, 100)]
    others += [draw(seed=n) for n in (1, 2, 2**32, 2**63)] + [draw(parameter_id=1, draw_number=2)]
    others += [first.roll(lag) for lag in (1, 2, 3, 4, 5, 7, 8, 64, 2**18)]
    for other in others:
        assert abs((first * other).mean().item()) <= 4 / MILLION**0.5


def test_words_are_uniform_over_256_intervals() -> None:
    """A chi-squared statistic within 4 standard deviations of its mean, of the very words that make the mask."""
    codes = (torch.arange(MILLION) % 256).to(torch.uint8)
    words = philox.random_words(9, 0, 1, np.arange(MILLION))
    counts = np.bincount((words >> np.uint64(24)).astype(np.int64), minlength=256)
    statistic = float(((counts - MILLION / 256) ** 2 / (MILLION / 256)).sum())
    assert abs(statistic - 255) <= 4 * (2 * 255) ** 0.5
    mask = keep_mask(codes, 0.5, 3.0, seed=9, parameter_id=0, draw_number=1)
    np.testing.assert_array_equal(mask.numpy(), words < philox.thresholds(0.5, 3.0)[codes.numpy()])


def test_a_mask_does_not_depend_on_the_ranks_of_other_elements() -> None:
    codes = torch.randint(256, (1000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    changed = codes.clone()
    changed[::2] = 255
    masks = [keep_mask(c, 0.5, 2.0, seed=0, parameter_id=0, draw_number=1) for c in (codes, changed)]
    assert torch.equal(masks[0][1::2], masks[1][1::2])
    assert (masks[1] >= masks[0]).all()  # a higher rank keeps whatever a lower one keeps
