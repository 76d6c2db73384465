"""What the tests of optimizer and kernels share: the backends to test, on which device, and the vectors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings

from tests.interpreter import round_to_bfloat16_as_gpus_do
from tests.support import torch_tests  # noqa: F401 - it sets a profile of hypothesis, and ours must come later
from tests.support.devices import BACKENDS, CPU, DEVICE, INTERPRETED, backends_on
from tests.support.differences import LARGEST_UNITS, UNITS

# The workers of a parallel run share the cores: more threads than cores wait for each other, and tests take minutes.
# What must hold for any number of threads sets it itself.
torch.set_num_threads(1)

# A test is never timed: what an example takes depends on what else the machine does. Random inputs are the same ones
# every time, but in `make fuzz`, which looks for new ones.
settings.register_profile("fixed", deadline=None, max_examples=100, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=2_000, derandomize=False)
settings.register_profile(  # tests/mutations.py wants to know no more than whether a test fails
    "first failure",
    deadline=None,
    max_examples=100,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
)
settings.load_profile("fixed")

if INTERPRETED:
    round_to_bfloat16_as_gpus_do()

RUNNABLE_BACKENDS = backends_on(CPU)


@pytest.fixture(params=RUNNABLE_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that can run on the CPU here; test_optimizer_backends.py accounts for all others."""
    name: str = request.param
    return name


@pytest.fixture(params=BACKENDS)
def device_backend(request: pytest.FixtureRequest) -> str:
    """Each backend that can run on the device of the tests."""
    name: str = request.param
    return name


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark interpreted cases as slow, but for one in so many as the marker says; the same ones every time."""
    thinned = [(each, each.get_closest_marker("one_in")) for each in items if isinstance(each, pytest.Function)]
    slow = [(item, mark.args[0]) for item, mark in thinned if mark is not None and _is_interpreted(item)]
    for number, (item, one_in) in enumerate(slow):
        if number % one_in:
            item.add_marker(pytest.mark.slow)


def _is_interpreted(item: pytest.Function) -> bool:
    return INTERPRETED and item.callspec.params.get("device_backend") == "triton"


@pytest.fixture
def count_case(device_backend: str, record_property: Callable[[str, object], None]) -> Iterator[Callable[[], None]]:
    """To be called once per case of the conformity and random tests; the end of a run tells how many there were."""
    cases = 0

    def count() -> None:
        nonlocal cases
        cases += 1

    yield count
    how = " (interpreted)" if INTERPRETED and device_backend == "triton" else ""
    record_property(f"cases on {device_backend}{how}, {DEVICE.type}", cases)


@pytest.fixture(autouse=True)
def largest_units(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Tells by how much the values of a test differed from the reference's."""
    LARGEST_UNITS.clear()
    yield
    for name, units in LARGEST_UNITS.items():
        record_property(UNITS + name, units)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many conformity and random cases each backend was put through, and how far values were off at most."""
    cases: Counter[str] = Counter()
    units: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "teardown":
                continue
            for name, number in report.user_properties:
                if name.startswith("cases on "):
                    cases[name] += number
                elif name.startswith(UNITS):
                    units[name] = max(units.get(name, 0.0), number)
    if cases.total():
        terminalreporter.section("conformity and random inputs")
        for name, count in sorted(cases.items()):
            terminalreporter.write_line(f"{name}: {count:,}")
    if units:
        terminalreporter.section(f"largest differences from the reference, units of the last place, {DEVICE}")
        for name, largest in sorted(units.items()):
            terminalreporter.write_line(f"{name.removeprefix(UNITS)}: {largest:.3g}")


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Any]:
    """Reads a file of tests/vectors by its name without ending."""
    return lambda name: json.loads((Path(__file__).parent / "vectors" / f"{name}.json").read_text())
