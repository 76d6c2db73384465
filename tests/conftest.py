"""What the tests of optimizer and kernels share: the backends to test, and the vectors."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.testing._internal.common_utils  # sets a profile of hypothesis of its own: import it before ours is set
from hypothesis import settings

from roast_optim.kernels.backend import BACKEND_NAMES, load_backend
from tests.interpreter import round_to_bfloat16_as_gpus_do

# The workers of a parallel run share the cores: more threads than cores wait for each other, and tests take minutes.
# What must hold for any number of threads sets it itself.
torch.set_num_threads(1)

# A test is never timed: what an example takes depends on what else the machine does. Random inputs are the same ones
# every time, but in `make fuzz`, which looks for new ones.
settings.register_profile("fixed", deadline=None, max_examples=100, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=2_000, derandomize=False)
settings.load_profile("fixed")

if os.environ.get("TRITON_INTERPRET") == "1":
    round_to_bfloat16_as_gpus_do()


def can_run(name: str) -> bool:
    """Whether a backend can run parameters on the CPU here."""
    backend = load_backend(name)
    return backend.unavailable() is None and backend.supports(torch.device("cpu"))


RUNNABLE_BACKENDS = [name for name in BACKEND_NAMES if can_run(name)]


@pytest.fixture(params=RUNNABLE_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that can run on the CPU here; test_optimizer_backends.py accounts for all others."""
    name: str = request.param
    return name


@pytest.fixture
def count_case(backend: str, record_property: Callable[[str, object], None]) -> Iterator[Callable[[], None]]:
    """To be called once per case of the conformity and random tests; the end of a run tells how many there were."""
    cases = 0

    def count() -> None:
        nonlocal cases
        cases += 1

    yield count
    record_property(f"cases on {backend}", cases)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many conformity and random cases each backend was put through."""
    cases: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                cases.update({name: n for name, n in report.user_properties if name.startswith("cases on ")})
    if cases.total():
        terminalreporter.section("conformity and random inputs")
        for name, number in sorted(cases.items()):
            terminalreporter.write_line(f"{name}: {number:,}")


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Any]:
    """Reads a file of tests/vectors by its name without ending."""
    return lambda name: json.loads((Path(__file__).parent / "vectors" / f"{name}.json").read_text())
