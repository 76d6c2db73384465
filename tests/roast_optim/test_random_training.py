"""Any sequence of operations on any parameters leaves the optimizer where its oracle is."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from tests.roast_optim.random_training import Plan, RandomTraining, plans
from tests.support.devices import BACKENDS, SLOW_BACKENDS

PARTS = 8  # tests of equal size, for several processes to share
EXAMPLES = settings.default.max_examples  # type: ignore[union-attr]
FEW = EXAMPLES // 16  # of each part, where an example takes long


def random_trainings(name: str, examples: int) -> Callable[..., None]:
    """A test of so many random trainings, which are others for another name."""

    def test(plan: Plan, device_backend: str, count_case: Callable[[], None]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "refresh\\(\\) found no accumulated importance")
            warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)
            training = RandomTraining(plan, device_backend)
            for operation in plan.operations:
                training.do(operation)
                training.check()
        count_case()

    test.__name__ = test.__qualname__ = name
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    drawn: Callable[..., None] = settings(max_examples=examples, suppress_health_check=checks)(given(plan=plans)(test))
    return drawn


def on(backends: list[str], *, slow: list[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on each of the backends; what is slow in `make test-slow` only."""
    params = [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in backends]
    return pytest.mark.parametrize("device_backend", params, indirect=True)


for part in range(PARTS):
    several, few = f"test_random_trainings_follow_the_oracle_{part}", f"test_a_few_random_trainings_do_so_too_{part}"
    globals()[several] = on(BACKENDS, slow=SLOW_BACKENDS)(random_trainings(several, EXAMPLES))
    if SLOW_BACKENDS:
        globals()[few] = on(SLOW_BACKENDS, slow=[])(random_trainings(few, FEW))
