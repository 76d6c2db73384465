"""Any sequence of operations on any parameters leaves the optimizer where its oracle is."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from tests.roast_optim.random_training import Plan, RandomTraining, plans


@settings(
    max_examples=8 * settings.default.max_examples,  # type: ignore[union-attr]
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plan=plans)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_random_training_follows_the_oracle(plan: Plan, backend: str, count_case: Callable[[], None]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "refresh\\(\\) found no accumulated importance")
        training = RandomTraining(plan, backend)
        for operation in plan.operations:
            training.do(operation)
            training.check()
    count_case()
