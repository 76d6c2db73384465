"""With selection RoastAdamW agrees with the oracle: masks and rank codes exactly, values up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from roast_optim import RoastAdamW
from tests.oracles import philox, ranks
from tests.support.optimizer_and_oracle import OptimizerAndOracle

STEPS, REFRESH_EVERY = 50, 14  # three refreshes, the last one eight steps before the end

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "gentle": {"alpha": 0.6, "beta": 1.0},
    "nearly nothing kept": {"alpha": 1.0, "beta": 30.0},
    "nearly everything kept": {"alpha": 0.0, "beta": 30.0},
    "amsgrad": {"amsgrad": True, "alpha": 0.6, "beta": 1.0},
    "maximize": {"maximize": True, "alpha": 0.6, "beta": 5.0},
    "no weight decay": {"weight_decay": 0.0, "alpha": 0.5, "beta": 5.0},
    "strong weight decay": {"weight_decay": 0.5, "alpha": 0.5, "beta": 5.0},
    "other betas and eps": {"betas": (0.8, 0.95), "eps": 1e-4, "alpha": 0.5, "beta": 5.0},
    "without rescaling": {"rescale": False, "alpha": 0.6, "beta": 5.0},
    "one draw between refreshes": {"mask_schedule": "refresh", "alpha": 0.6, "beta": 5.0},
    "every third importance": {"importance_every": 3, "alpha": 0.6, "beta": 5.0},
    "importance once a refresh": {"importance_every": REFRESH_EVERY, "alpha": 0.6, "beta": 5.0},
    "random ranks": {"importance": "random", "alpha": 0.6, "beta": 5.0},
    "ranks of magnitude": {"importance": "magnitude", "alpha": 0.6, "beta": 5.0},
    "largest seed": {"seed": 2**64 - 1, "alpha": 0.6, "beta": 5.0},
    "seed of 32 bits": {"seed": 2**32, "alpha": 0.6, "beta": 5.0},
}

GROUP_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "own alpha and beta": [{"alpha": 0.3, "beta": 2.0}, {"alpha": 0.8, "beta": 20.0}],
    "second group not selective": [{"alpha": 0.5, "beta": 2.0}, {"selective": False}],
    "first group not selective": [{"selective": False, "lr": 1e-3}, {"alpha": 0.5, "beta": 2.0}],
    "own AdamW options": [
        {"lr": 3e-3, "betas": (0.7, 0.9), "weight_decay": 0.0},
        {"eps": 1e-5, "amsgrad": True, "maximize": True},
    ],
}


def assert_agrees_for_50_steps(pair: OptimizerAndOracle) -> None:
    for step in range(STEPS):
        gradients = pair.gradients()
        if step % 7 == 3:
            gradients[0][1] = None  # a parameter that has no gradient now and then keeps a step count of its own
        pair.step(gradients)
        pair.assert_same_selection()
    assert [group["refreshes"] for group in pair.optimizer.param_groups] == [3, 3]
    pair.assert_close()


@pytest.mark.parametrize("name", OPTIONS)
def test_agrees_with_the_oracle_in_float64(name: str, backend: str) -> None:
    assert_agrees_for_50_steps(
        OptimizerAndOracle(backend=backend, lr=1e-2, refresh_every=REFRESH_EVERY, **OPTIONS[name])
    )


# In float32 the oracle's magnitudes are not those of the rounded parameters; see test_magnitude_ranks_the_parameters.
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "ranks of magnitude"])
def test_agrees_with_the_oracle_in_float32(name: str, backend: str) -> None:
    options = OPTIONS[name]
    assert_agrees_for_50_steps(
        OptimizerAndOracle(backend=backend, dtype=torch.float32, lr=1e-2, refresh_every=REFRESH_EVERY, **options)
    )


@pytest.mark.parametrize("name", GROUP_OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_agrees_with_the_oracle_with_options_per_group(name: str, dtype: torch.dtype, backend: str) -> None:
    pair = OptimizerAndOracle(
        backend=backend, dtype=dtype, lr=1e-2, refresh_every=REFRESH_EVERY, group_options=GROUP_OPTIONS[name]
    )
    assert_agrees_for_50_steps(pair)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float64) for name in OPTIONS), ("defaults", torch.float32)], ids=str
)
def test_masks_of_every_step_are_those_of_the_oracle(name: str, dtype: torch.dtype, backend: str) -> None:
    options = {**OPTIONS[name], "betas": (0.0, 0.99)}
    pair = OptimizerAndOracle(backend=backend, dtype=dtype, lr=1e-2, refresh_every=REFRESH_EVERY, **options)
    for _ in range(STEPS):
        pair.step()
        pair.assert_same_masks()
    kept = np.concatenate([mask.reshape(-1) for masks in pair.oracle.kept for mask in masks if mask is not None])
    assert kept.size == sum(p.numel() for parameters in pair.parameters for p in parameters)


def test_masks_agree_on_a_parameter_of_several_chunks(backend: str) -> None:
    pair = OptimizerAndOracle(
        [[(3, 211, 1_009)]], backend=backend, dtype=torch.float32, betas=(0.0, 0.9), alpha=0.6, beta=2.0
    )
    pair.step()
    pair.refresh()
    pair.step()
    pair.assert_same_selection()
    pair.assert_same_masks()
    pair.assert_close()


# ------------------------------------------------------------------------------------------------ meaning of the masks


def test_an_element_that_is_not_kept_is_still_moved_by_momentum_and_weight_decay(backend: str) -> None:
    pair = OptimizerAndOracle([[(40, 50)]], backend=backend, lr=1e-2, weight_decay=0.1, alpha=0.6, beta=5.0)
    pair.step()
    pair.refresh()
    parameter = pair.parameters[0][0]
    before = parameter.detach().clone()
    first, second = (pair.optimizer.state[parameter][key].clone() for key in ("exp_avg", "exp_avg_sq"))
    pair.step()
    kept = pair.oracle.kept[0][0]
    assert kept is not None
    dropped = torch.from_numpy(~kept)
    assert 0 < dropped.sum() < dropped.numel()
    state = pair.optimizer.state[parameter]
    assert torch.allclose(state["exp_avg"][dropped], 0.9 * first[dropped], rtol=1e-12, atol=0)
    assert torch.allclose(state["exp_avg_sq"][dropped], 0.999 * second[dropped], rtol=1e-12, atol=0)
    assert (parameter.detach() != before)[dropped].all()


def test_step_schedule_draws_anew_and_refresh_schedule_keeps_one_draw(backend: str) -> None:
    for schedule, differs in (("step", True), ("refresh", False)):
        pair = OptimizerAndOracle(
            [[(50, 40)]],
            backend=backend,
            betas=(0.0, 0.9),
            alpha=0.5,
            beta=1.0,
            mask_schedule=schedule,
            refresh_every=3,
        )
        masks = []
        for _ in range(9):
            pair.step()
            masks.append(pair.optimizer.state[pair.parameters[0][0]]["exp_avg"] != 0)
        assert torch.equal(masks[3], masks[4]) != differs
        assert torch.equal(masks[4], masks[5]) != differs
        assert not torch.equal(masks[5], masks[6])  # the third refresh lies between


def test_seeds_give_different_masks_and_the_same_seed_the_same(backend: str) -> None:
    def last_mask(seed: int) -> torch.Tensor:
        pair = OptimizerAndOracle(
            [[(50, 40)]], backend=backend, betas=(0.0, 0.9), alpha=0.5, beta=1.0, refresh_every=1, seed=seed
        )
        pair.step()
        pair.step()
        return torch.ne(pair.optimizer.state[pair.parameters[0][0]]["exp_avg"], 0)

    assert torch.equal(last_mask(1), last_mask(1))
    assert not torch.equal(last_mask(1), last_mask(2))
    assert not torch.equal(last_mask(1), last_mask(1 + 2**32))


def test_every_group_draws_with_its_own_seed(backend: str) -> None:
    params = [torch.nn.Parameter(torch.zeros(600)) for _ in range(2)]
    groups = [{"params": [param], "seed": seed} for param, seed in zip(params, (3, 5), strict=True)]
    optimizer = RoastAdamW(groups, betas=(0.0, 0.9), alpha=0.5, beta=1.0, backend=backend)
    for step in (1, 2):
        for param in params:
            param.grad = torch.arange(1.0, 601.0)
        optimizer.step()
        if step == 1:
            optimizer.refresh()
    for index, (param, seed) in enumerate(zip(params, (3, 5), strict=True)):
        state = optimizer.state[param]
        expected = philox.keep_mask(state["rank_code"].numpy(), 0.5, 1.0, seed=seed, parameter_id=index, draw_number=2)
        np.testing.assert_array_equal(state["exp_avg"].numpy() != 0, expected)


def test_global_random_state_plays_no_part(backend: str) -> None:
    import random

    pair = OptimizerAndOracle(backend=backend, refresh_every=2, importance="random")
    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    for _ in range(5):
        pair.step()
    pair.measure()
    pair.optimizer.selection_stats()
    after = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    assert torch.equal(before[0], after[0])
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert before[2] == after[2]

    def parameters_after_steps(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        pair = OptimizerAndOracle(backend=backend, refresh_every=2)
        for _ in range(5):
            pair.step()
        return pair.parameters[0][0].detach()

    assert torch.equal(parameters_after_steps(1), parameters_after_steps(2))


# ------------------------------------------------------------------------------------------------- importance variants


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_magnitude_ranks_the_parameters(dtype: torch.dtype, backend: str) -> None:
    """NaN ranks lowest, infinity highest; a parameter without gradient is ranked too."""
    values = torch.randn(300, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[3], values[5], values[7], values[9] = float("nan"), float("inf"), -float("inf"), 0.0
    parameters = [torch.nn.Parameter(values), torch.nn.Parameter(2 * values[50:90].clone())]
    optimizer = RoastAdamW(parameters, importance="magnitude", backend=backend)
    parameters[0].grad = torch.ones_like(values)
    optimizer.step()
    scores = [np.abs(p.detach().float().numpy()) for p in parameters]
    scores[0][3], scores[0][[5, 7]] = 0.0, ranks.LARGEST_FLOAT32
    optimizer.refresh()
    for parameter, codes in zip(parameters, ranks.percentile_rank_codes(scores), strict=True):
        assert optimizer.state[parameter]["rank_code"].numpy().tolist() == codes.tolist()
        assert not optimizer.state[parameter]["importance"].any()


def test_magnitude_beyond_float32_counts_as_the_largest(backend: str) -> None:
    values = torch.tensor([1e300, -1e300, float("inf"), 1.0, 0.0, 1e-300], dtype=torch.float64)
    parameter = torch.nn.Parameter(values)
    optimizer = RoastAdamW([parameter], importance="magnitude", backend=backend)
    optimizer.refresh()
    scores = np.array([ranks.LARGEST_FLOAT32] * 3 + [1.0, 0.0, 0.0], np.float32)
    (expected,) = ranks.percentile_rank_codes([scores])
    assert optimizer.state[parameter]["rank_code"].tolist() == expected.tolist()


def test_random_ranks_are_the_same_at_every_refresh_and_independent_of_gradients(backend: str) -> None:
    def codes(refreshes: int, seed: int) -> list[int]:
        pair = OptimizerAndOracle([[(20, 30)]], backend=backend, importance="random", refresh_every=1, seed=seed)
        for _ in range(refreshes):
            pair.step()
        result: list[int] = pair.optimizer.state[pair.parameters[0][0]]["rank_code"].reshape(-1).tolist()
        return result

    words = philox.random_words(4, 0, 0, np.arange(600))
    scores = ((words >> np.uint64(8)) / 2**24).astype(np.float32)
    assert codes(1, seed=4) == codes(3, seed=4) == ranks.percentile_rank_codes([scores])[0].tolist()
    assert codes(1, seed=4) != codes(1, seed=5)


def test_importance_is_the_squared_gradient_that_step_sees(backend: str) -> None:
    """After accumulation over micro-batches and after clipping, whatever the sign that maximize gives it."""
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = RoastAdamW([parameter], maximize=True, backend=backend)
    for _ in range(2):
        (parameter * torch.tensor([1.0, -2.0, 3.0, 0.0])).sum().backward()
    torch.nn.utils.clip_grad_norm_([parameter], 0.5)
    assert parameter.grad is not None
    seen = parameter.grad.numpy().copy()
    optimizer.step()
    assert optimizer.state[parameter]["importance"].tolist() == (seen * seen).tolist()


def test_importance_is_float32_with_two_roundings_for_every_dtype(vectors: Any, backend: str) -> None:
    bits = {key: np.array([int(word, 16) for word in words], np.uint32) for key, words in vectors("importance").items()}
    before, gradient = (torch.from_numpy(bits[key].view(np.float32)) for key in ("before", "gradient"))
    for dtype in (torch.float32, torch.float64):
        parameter = torch.nn.Parameter(torch.zeros(before.shape, dtype=dtype))
        optimizer = RoastAdamW([parameter], backend=backend)
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.state[parameter]["importance"].copy_(before)
        parameter.grad = gradient.to(dtype)
        optimizer.step()
        importance = optimizer.state[parameter]["importance"]
        assert importance.dtype == torch.float32
        np.testing.assert_array_equal(importance.numpy().view(np.uint32), bits["after"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_importance_of_half_precision_gradients_is_squared_in_float32(dtype: torch.dtype, backend: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(500, dtype=dtype))
    optimizer = RoastAdamW([parameter], backend=backend)
    expected = np.zeros(500, np.float32)
    for seed in range(5):
        gradient = (torch.randn(500, generator=torch.Generator().manual_seed(seed)) * 1e-3).to(dtype)
        parameter.grad = gradient
        optimizer.step()
        expected = ranks.accumulated(expected, gradient.float().numpy())
    np.testing.assert_array_equal(optimizer.state[parameter]["importance"].numpy(), expected)
