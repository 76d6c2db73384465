"""Devices, workloads, rows of the results, and what the JSON says of the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import pytest
import torch

from roast_optim.kernels import native

from . import pairs
from .pairs import Benchmark, Contestant
from .workloads import Shapes, workloads


class Row(Protocol):
    """Begin a row of the results."""

    def __call__(self, what: str, candidate: str, impossible: str | None) -> None:
        """With a reason why it is impossible here, the row consists of that reason and the benchmark ends."""


class Compare(Protocol):
    """Fill the row with times."""

    def __call__(
        self, candidate: Contestant, opponents: Sequence[Contestant], *, seconds: float = 4.0, once: bool = False
    ) -> None:
        """See :func:`.pairs.compare`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tiny", action="store_true", help="next to no work, to see that every benchmark runs")


@pytest.fixture
def tiny(request: pytest.FixtureRequest) -> bool:
    """Whether this is a trial of the benchmarks themselves."""
    return bool(request.config.getoption("--tiny"))


@pytest.fixture
def sizes(tiny: bool) -> Mapping[str, Shapes]:
    """The shapes under each workload's name."""
    return workloads(tiny)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device, also one that is not there: its rows say so."""
    return torch.device(request.param)


@pytest.fixture
def row(benchmark: Benchmark, device: torch.device) -> Row:
    def begin(what: str, candidate: str, impossible: str | None) -> None:
        benchmark.group = what
        benchmark.extra_info.update(what=what, candidate=candidate, device=device.type)
        if impossible is not None:
            benchmark.extra_info["not_measured"] = impossible
            benchmark.pedantic(lambda: None)  # pytest-benchmark saves nothing but what ran
            pytest.skip(impossible)

    return begin


@pytest.fixture
def compare(benchmark: Benchmark, device: torch.device, tiny: bool) -> Compare:
    def fill(
        candidate: Contestant, opponents: Sequence[Contestant], *, seconds: float = 4.0, once: bool = False
    ) -> None:
        pairs.compare(benchmark, candidate, opponents, device, seconds=0.0 if tiny else seconds, once=once)

    return fill


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Keep what figures depend on, and nothing that names the machine."""
    processor = machine_info["cpu"].get("brand_raw", platform.processor())
    machine_info.clear()
    machine_info |= {
        "cpu": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": native.instruction_set() if native.unavailable() is None else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **_versions("torch", "triton", "transformers", "roast-optim"),
        },
    }


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
