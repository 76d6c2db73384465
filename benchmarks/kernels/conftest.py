"""Devices, workloads, rows, and what the JSON says of the machine."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cpuinfo
import pytest
import torch

from .pairs import Benchmark
from .workloads import Shapes, workloads

Row = Callable[..., None]


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
    """Begin a row of the results: ``row(what, candidate, impossible)``.

    With a reason why it is impossible here, the row consists of that reason and the benchmark ends.
    """

    def begin(what: str, candidate: str, impossible: str | None = None) -> None:
        benchmark.group = what
        benchmark.extra_info.update(what=what, candidate=candidate, device=device.type)
        if impossible is not None:
            benchmark.extra_info["not_measured"] = impossible
            benchmark.pedantic(_nothing, setup=_nothing, rounds=1)  # only what ran is saved
            pytest.skip(impossible)

    return begin


def _nothing() -> None:
    pass


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """What figures depend on; nothing that names the machine."""
    return {
        "cpu": cpuinfo.get_cpu_info().get("brand_raw", platform.processor()),
        "cores": torch.multiprocessing.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "triton", "transformers", "roast-optim")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
