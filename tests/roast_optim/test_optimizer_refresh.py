"""When ranks are recomputed, what is counted, and what a refresh leaves alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from roast_optim import RoastAdamW
from tests.oracles import ranks
from tests.support.optimizer_and_oracle import OptimizerAndOracle
from tests.support.snapshot import assert_same_snapshots, snapshot


def counters(pair: OptimizerAndOracle) -> list[tuple[int, int]]:
    return [(group["refreshes"], group["steps_since_refresh"]) for group in pair.optimizer.param_groups]


def repeat(times: int, action: Callable[[], None]) -> None:
    for _ in range(times):
        action()


def test_ranks_are_refreshed_after_every_nth_step(backend: str) -> None:
    pair = OptimizerAndOracle([[(4, 5)], [(6,)]], backend=backend, refresh_every=3)
    seen = []
    for _ in range(7):
        pair.step()
        pair.assert_same_selection()
        seen.append(counters(pair)[0])
        assert counters(pair)[0] == counters(pair)[1]
    assert seen == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]


def test_without_refresh_every_only_refresh_refreshes(backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend)
    for _ in range(5):
        pair.step()
    assert counters(pair) == [(0, 5), (0, 5)]
    pair.refresh()
    assert counters(pair) == [(1, 0), (1, 0)]
    pair.assert_same_selection()


def test_a_manual_refresh_restarts_the_count_to_the_next_one(backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend, refresh_every=4)
    for _ in range(3):
        pair.step()
    pair.refresh()
    for _ in range(3):
        pair.step()
    assert counters(pair) == [(1, 3), (1, 3)]
    pair.step()
    assert counters(pair) == [(2, 0), (2, 0)]
    pair.assert_same_selection()


def test_steps_without_any_gradient_count_nothing(backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend, refresh_every=2)
    pair.step()
    before = snapshot(pair.optimizer)
    pair.optimizer.zero_grad()
    for _ in range(3):
        pair.optimizer.step()
    assert_same_snapshots(before, snapshot(pair.optimizer))


def test_steps_count_for_a_group_whose_parameters_had_no_gradient(backend: str) -> None:
    pair = OptimizerAndOracle([[(4,)], [(5,)]], backend=backend, refresh_every=2)
    for expected in ((0, 1), (1, 0)):
        gradients = pair.gradients()
        gradients[1] = [None]
        pair.step(gradients)
        assert counters(pair) == [expected, expected]
    pair.assert_same_selection()


def test_a_parameter_without_gradient_is_ranked_with_importance_zero(backend: str) -> None:
    pair = OptimizerAndOracle([[(30,), (20,)]], backend=backend, refresh_every=2)
    for _ in range(2):
        gradients = pair.gradients()
        gradients[0][1] = None
        pair.step(gradients)
    pair.assert_same_selection()
    state = pair.optimizer.state[pair.parameters[0][1]]
    assert state["step"].item() == 0
    assert state["rank_code"].tolist() == [256 * 20 // (2 * 50)] * 20
    pair.step()
    pair.assert_same_selection()
    pair.assert_close()


def test_a_parameter_frozen_during_the_first_epoch_is_fully_updated_until_it_is_ranked(backend: str) -> None:
    pair = OptimizerAndOracle(
        [[(40,), (40,)]], backend=backend, alpha=0.9, beta=10.0, betas=(0.0, 0.9), refresh_every=2
    )
    late = pair.parameters[0][1]
    late.requires_grad_(False)
    pair.oracle.groups[0].frozen = {1}
    for _ in range(2):
        gradients = pair.gradients()
        gradients[0][1] = None
        pair.step(gradients)
    assert not pair.optimizer.state.get(late)
    late.requires_grad_(True)
    pair.oracle.groups[0].frozen = set()
    pair.step()
    assert (pair.optimizer.state[late]["rank_code"] == 255).all()
    pair.assert_same_selection()
    pair.assert_same_masks()
    pair.step()
    assert not (pair.optimizer.state[late]["rank_code"] == 255).all()
    pair.assert_same_selection()


def test_accumulation_starts_again_at_zero(backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend, refresh_every=2)
    for _ in range(2):
        pair.step()
    for state, _ in pair.states():
        assert not state["importance"].any()
    gradients = pair.gradients()
    pair.step(gradients)
    for (state, _), gradient in zip(pair.states(), [g for of_group in gradients for g in of_group], strict=True):
        assert gradient is not None
        expected = ranks.accumulated(np.zeros(gradient.shape, np.float32), gradient)
        np.testing.assert_array_equal(state["importance"].numpy(), expected)


@pytest.mark.parametrize("refresh_every", [None, 10])
def test_importance_is_accumulated_at_every_kth_step_only(refresh_every: int | None, backend: str) -> None:
    pair = OptimizerAndOracle([[(6,)]], backend=backend, importance_every=3, refresh_every=refresh_every)
    changed = []
    for _ in range(9):
        before = pair.states()[0][0].get("importance", torch.zeros(6)).clone()
        pair.step()
        changed.append(not torch.equal(before, pair.states()[0][0]["importance"]))
        pair.assert_same_selection()
    assert changed == [False, False, True] * 3


def test_ranks_do_not_change_between_refreshes(backend: str) -> None:
    pair = OptimizerAndOracle([[(20, 5)]], backend=backend, refresh_every=3)
    for _ in range(3):
        pair.step()
    codes = pair.states()[0][0]["rank_code"].clone()
    for _ in range(2):
        pair.step()
        assert torch.equal(codes, pair.states()[0][0]["rank_code"])
    pair.step()
    assert not torch.equal(codes, pair.states()[0][0]["rank_code"])


# -------------------------------------------------------------------------------------------------- nothing accumulated


def test_a_refresh_with_nothing_accumulated_keeps_the_ranks_and_warns_once(backend: str) -> None:
    pair = OptimizerAndOracle([[(10,)]], backend=backend)
    pair.step()
    pair.refresh()
    pair.step()
    pair.refresh()
    codes = pair.states()[0][0]["rank_code"].clone()
    with pytest.warns(UserWarning, match="importance") as caught:
        repeat(3, pair.refresh)
    assert len(caught) == 1
    assert counters(pair) == [(2, 0)]
    assert torch.equal(codes, pair.states()[0][0]["rank_code"])
    pair.assert_same_selection()


def test_an_optimizer_that_never_accumulated_anything_keeps_updating_everything(backend: str) -> None:
    pair = OptimizerAndOracle([[(10,)]], backend=backend, refresh_every=1, betas=(0.0, 0.9))
    zero = np.zeros(10)
    with pytest.warns(UserWarning, match="importance") as caught:
        repeat(3, lambda: pair.step([[zero]]))
    assert len(caught) == 1
    assert counters(pair) == [(0, 0)]
    with pytest.warns(UserWarning, match="importance"):  # once per optimizer, not once per process
        OptimizerAndOracle([[(10,)]], backend=backend, refresh_every=1).step([[zero]])


def test_importance_within_the_lowest_bin_counts_as_nothing_and_is_reset(backend: str) -> None:
    pair = OptimizerAndOracle([[(10,)]], backend=backend, refresh_every=2)
    tiny = np.full(10, 1e-21)
    with pytest.warns(UserWarning, match="importance"):
        repeat(2, lambda: pair.step([[tiny]]))
    assert counters(pair) == [(0, 0)]
    assert not pair.states()[0][0]["importance"].any()
    pair.assert_same_selection()


def test_non_finite_gradients_alone_accumulate_nothing(backend: str) -> None:
    pair = OptimizerAndOracle([[(3,)]], backend=backend, refresh_every=1)
    with pytest.warns(UserWarning, match="importance"):
        pair.step([[np.array([np.nan, np.inf, -np.inf])]])
    assert counters(pair) == [(0, 0)]


def test_nothing_to_select_means_no_refresh_and_no_warning(backend: str) -> None:
    pair = OptimizerAndOracle([[(10,)]], backend=backend, refresh_every=2, selective=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            pair.step()
    assert counters(pair) == [(0, 5)]


# ------------------------------------------------------------------------------------------------- measure_importance


def test_measuring_accumulates_importance_and_changes_and_counts_nothing_else(backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend, refresh_every=3, amsgrad=True, weight_decay=0.1)
    for _ in range(4):
        pair.step()
    before = snapshot(pair.optimizer)
    for _ in range(5):
        pair.measure()
    pair.assert_same_selection()
    assert any(not torch.equal(state["importance"], torch.zeros(())) for state, _ in pair.states())
    for parameters, (_, saved) in zip(pair.parameters, before, strict=True):
        for parameter, (_, state) in zip(parameters, saved, strict=True):
            state["importance"] = pair.optimizer.state[parameter]["importance"].clone()
    assert_same_snapshots(before, snapshot(pair.optimizer))


def test_measuring_before_training_gives_masks_to_the_first_step(backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend, betas=(0.0, 0.9), alpha=0.5, beta=2.0, refresh_every=4)
    for _ in range(3):
        pair.measure()
    assert all(state["step"].item() == 0 for state, _ in pair.states())
    pair.refresh()
    assert counters(pair) == [(1, 0), (1, 0)]
    pair.step()
    pair.assert_same_selection()
    pair.assert_same_masks()
    assert all(mask is not None for masks in pair.oracle.kept for mask in masks)
    pair.assert_close()


def test_measuring_counts_every_step_whatever_importance_every(backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend, importance_every=3)
    for _ in range(2):
        pair.measure()
    pair.assert_same_selection()
    assert pair.states()[0][0]["importance"].any()


def test_measuring_ends_with_its_block_even_after_an_error(backend: str) -> None:
    pair = OptimizerAndOracle([[(4,)]], backend=backend)
    with pytest.raises(KeyError), pair.optimizer.measure_importance():
        raise KeyError("from the loop")
    pair.step()
    pair.assert_same_selection()
    pair.assert_close()


def test_measuring_calls_the_closure_and_returns_its_loss(backend: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = RoastAdamW([parameter], backend=backend)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (2 * parameter).sum()
        loss.backward()
        return loss.item()

    with optimizer.measure_importance():
        assert optimizer.step(closure) == 6.0
    assert parameter.tolist() == [1.0] * 3
    assert optimizer.state[parameter]["importance"].tolist() == [4.0] * 3


# ------------------------------------------------------------------------------------------------------- added groups


@pytest.mark.parametrize("options", [{}, {"alpha": 0.3, "beta": 1.0}, {"selective": False}], ids=str)
def test_a_group_added_in_the_middle_is_masked_from_the_next_refresh_on(options: dict[str, Any], backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend, refresh_every=4, betas=(0.0, 0.9), alpha=0.5, beta=3.0)
    for _ in range(6):
        pair.step()
    pair.add_group([(5, 6), (4,)], **options)
    for _ in range(2):
        pair.step()
        pair.assert_same_selection()
        pair.assert_same_masks()
    assert counters(pair) == [(2, 0), (2, 0), (1, 0)]
    for _ in range(5):
        pair.step()
        pair.assert_same_selection()
        pair.assert_same_masks()
    pair.assert_close()


def test_only_selective_groups_make_a_refresh_due(backend: str) -> None:
    """A selective group that comes later is refreshed after refresh_every steps of its own."""
    pair = OptimizerAndOracle([[(6,)]], backend=backend, selective=False, refresh_every=3)
    for _ in range(2):
        pair.step()
    pair.add_group([(30,)], selective=True)
    for _ in range(3):
        assert counters(pair)[1][0] == 0
        pair.step()
        pair.assert_same_selection()
    assert counters(pair) == [(1, 0), (1, 0)]


# -------------------------------------------------------------------------------------------- checkpoint initialisation


def test_a_first_step_with_zero_lr_and_zero_gradients_creates_state_and_counts_nothing(backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend, lr=0.0, refresh_every=1, weight_decay=0.1)
    zero = [[np.zeros_like(g) for g in of_group if g is not None] for of_group in pair.gradients()]
    parameters = [p.detach().clone() for ps in pair.parameters for p in ps]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair.step([list(of_group) for of_group in zero])
    assert counters(pair) == [(0, 0), (0, 0)]
    assert all(
        {"step", "exp_avg", "exp_avg_sq", "importance", "rank_code"} <= state.keys() for state, _ in pair.states()
    )
    pair.assert_same_selection()
    for before, after in zip(parameters, [p for ps in pair.parameters for p in ps], strict=True):
        assert torch.equal(before, after)


def test_a_warm_up_step_with_zero_lr_counts(backend: str) -> None:
    pair = OptimizerAndOracle([[(4,)]], backend=backend, lr=0.0)
    pair.step()
    assert counters(pair) == [(0, 1)]
    pair.assert_same_selection()


def test_a_later_step_with_zero_lr_and_zero_gradients_counts(backend: str) -> None:
    pair = OptimizerAndOracle([[(4,)]], backend=backend, lr=0.0)
    pair.step()
    pair.step([[np.zeros(4)]])
    assert counters(pair) == [(0, 2)]
    pair.assert_same_selection()


def test_a_first_step_with_zero_gradients_but_a_learning_rate_counts(backend: str) -> None:
    pair = OptimizerAndOracle([[(4,)]], backend=backend, lr=1e-3)
    pair.step([[np.zeros(4)]])
    assert counters(pair) == [(0, 1)]
    pair.assert_same_selection()
    pair.assert_close()
