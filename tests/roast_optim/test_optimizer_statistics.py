"""selection_stats(): expected and realised share of kept elements, per group and in all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.oracles import philox
from tests.support.optimizer_and_oracle import OptimizerAndOracle, Shapes
from tests.support.snapshot import assert_same_snapshots, snapshot


@pytest.mark.parametrize("mask_schedule", ["step", "refresh"])
def test_shares_are_those_of_the_oracle(mask_schedule: str, backend: str) -> None:
    options: list[dict[str, Any]] = [{"alpha": 0.4, "beta": 2.0}, {"alpha": 0.7, "beta": 5.0}, {"selective": False}]
    shapes: Shapes = [[(20, 30), (50,)], [(10, 11)], [(7,)]]
    pair = OptimizerAndOracle(
        shapes, backend=backend, group_options=options, refresh_every=3, mask_schedule=mask_schedule
    )
    for _ in range(5):
        pair.step()
    stats = pair.optimizer.selection_stats()

    expected_shares, realised_shares, elements = [], [], []
    for group, masks in zip(pair.oracle.groups, pair.oracle.kept, strict=True):
        if group.selective:
            codes = np.concatenate([state.rank_code.reshape(-1) for state in group.states if state is not None])
            expected_shares.append(float((philox.thresholds(group.alpha, group.beta)[codes] / 2**32).mean()))
            realised_shares.append(float(np.concatenate([m.reshape(-1) for m in masks if m is not None]).mean()))
        else:
            expected_shares.append(1.0)
            realised_shares.append(1.0)
        elements.append(sum(p.size for p in group.parameters))
    assert [of_group["expected_share"] for of_group in stats["groups"]] == pytest.approx(expected_shares, rel=1e-12)
    assert [of_group["realised_share"] for of_group in stats["groups"]] == pytest.approx(realised_shares, rel=1e-12)
    assert stats["expected_share"] == pytest.approx(np.average(expected_shares, weights=elements), rel=1e-12)
    assert stats["realised_share"] == pytest.approx(np.average(realised_shares, weights=elements), rel=1e-12)
    for counted in (stats, *stats["groups"]):
        assert (counted["refreshes"], counted["steps_since_refresh"]) == (1, 2)


def test_before_the_first_refresh_everything_is_kept(backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend)
    for _ in range(2):
        stats = pair.optimizer.selection_stats()
        for shares in (stats, *stats["groups"]):
            assert (shares["expected_share"], shares["realised_share"]) == (1.0, 1.0)
        pair.step()


def test_after_a_refresh_and_before_a_step_there_is_no_realised_share_yet(backend: str) -> None:
    pair = OptimizerAndOracle([[(50,)]], backend=backend, alpha=0.5, refresh_every=1)
    pair.step()
    stats = pair.optimizer.selection_stats()
    assert 0 < stats["expected_share"] < 1
    assert math.isnan(stats["realised_share"])


def test_a_group_that_becomes_selective_is_kept_whole_until_it_is_ranked(backend: str) -> None:
    pair = OptimizerAndOracle(
        [[(40,)], [(7,)]], backend=backend, group_options=[{}, {"selective": False}], refresh_every=1
    )
    pair.step()
    pair.optimizer.param_groups[1]["selective"] = True
    stats = pair.optimizer.selection_stats()
    assert stats["groups"][0]["expected_share"] < 1
    assert stats["groups"][1]["expected_share"] == 1


def test_statistics_change_nothing(backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend, refresh_every=2)
    for _ in range(3):
        pair.step()
    before = snapshot(pair.optimizer)
    pair.optimizer.selection_stats()
    assert_same_snapshots(before, snapshot(pair.optimizer))
