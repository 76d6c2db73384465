"""Any sequence of operations on any parameters leaves the optimizer where its oracle is."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.devices import BACKENDS, SLOW_BACKENDS
from tests.support.random_training import Plan, RandomTraining, plans

EXAMPLES = settings.default.max_examples  # type: ignore[union-attr]
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
# Tests of equal size, for several processes to share; hypothesis draws other examples for another number.
parts = pytest.mark.parametrize("part", range(8))


def on(backends: list[str], *, slow: list[str]) -> pytest.MarkDecorator:
    """Run a test on each of the backends; what is slow in `make test-slow` only."""
    params = [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in backends]
    return pytest.mark.parametrize("device_backend", params, indirect=True)


def follow(plan: Plan, backend: str) -> None:
    """Carry the plan out and compare with the oracle after every operation."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "refresh\\(\\) found no accumulated importance")
        warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)
        training = RandomTraining(plan, backend)
        for operation in plan.operations:
            training.do(operation)
            training.check()


@on(BACKENDS, slow=SLOW_BACKENDS)
@parts
@settings(max_examples=EXAMPLES, suppress_health_check=CHECKS)
@given(plan=plans)
def test_random_trainings_follow_the_oracle(
    plan: Plan, part: int, device_backend: str, count_case: Callable[[], None]
) -> None:
    follow(plan, device_backend)
    count_case()


if SLOW_BACKENDS:

    @on(SLOW_BACKENDS, slow=[])
    @parts
    @settings(max_examples=EXAMPLES // 16, suppress_health_check=CHECKS)
    @given(plan=plans)
    def test_a_few_random_trainings_follow_the_oracle(
        plan: Plan, part: int, device_backend: str, count_case: Callable[[], None]
    ) -> None:
        follow(plan, device_backend)
        count_case()
