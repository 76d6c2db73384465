"""What the Triton backend says of itself. Its kernels are tested in tests/kernels/triton."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from roast_optim.kernels import triton
from roast_optim.kernels.triton import launch

ROOT = Path(__file__).parents[2]
# What `make test` runs in the interpreter, in a run of its own, and how many tests that are at least.
INTERPRETED = {
    "tests/kernels/triton": 180,
    "tests/kernels/test_backends.py": 20,
    "tests/kernels/test_stochastic_rounding.py": 30,
    "tests/kernels/test_gradient_factor.py": 20,
    "tests/roast_optim/test_conformity.py": 200,
    "tests/roast_optim/test_random_training.py": 16,
}


def test_in_the_interpreter_there_are_as_many_tests_as_there_should_be() -> None:
    """A run that collects too little passes as well."""
    options = ["-q", "--collect-only", "-m", "", "-k", "triton", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "ROAST_TEST_DEVICE": "cpu"}
    command = [sys.executable, "-m", "pytest", *options, *INTERPRETED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    found = {files: sum(line.startswith(files) and "::" in line for line in lines) for files in INTERPRETED}
    assert all(found[files] >= least for files, least in INTERPRETED.items()), found
    makefile = (ROOT / "Makefile").read_text()
    assert all(files in makefile for files in INTERPRETED)


def test_without_triton_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = triton.unavailable()
    assert reason is not None
    assert "pip install 'roast-optim[triton]'" in reason


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = triton.unavailable()
    assert reason is not None
    assert "torch finds no GPU" in reason
    assert not triton.supports(torch.device("cpu"))


def test_a_gpu_that_triton_does_not_support_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(7, 0), (9, 0)][index])
    assert triton.unavailable() is None
    assert not triton.supports(torch.device("cuda", 0))
    assert triton.supports(torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    reason = triton.unavailable()
    assert reason is not None
    assert "compute capability 8.0" in reason


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as torch says."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(triton, "_launched", {})


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_launches_nothing_says_what_to_install_and_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def launch(index: int) -> str | None:
        tried.append(index)
        return original(index) if index == 1 else None

    original = triton._try_to_launch
    monkeypatch.setattr(triton, "_try_to_launch", launch)
    monkeypatch.setattr(torch, "zeros", broken(RuntimeError("Failed to find C compiler.\nPlease specify via CC")))
    assert triton.unavailable() is None  # nothing is started
    for _ in range(3):
        assert triton.unavailable(torch.device("cuda", 0)) is None
        reason = triton.unavailable(torch.device("cuda", 1))
        assert reason is not None
        assert "cannot launch a kernel on cuda:1 (RuntimeError: Failed to find C compiler.)" in reason
        assert "install a C compiler (gcc, or set CC) and Python's headers (python3-dev)" in reason
    assert tried == [0, 1]
    assert triton.unavailable(torch.device("cpu")) is None


@pytest.mark.usefixtures("two_gpus")
def test_nothing_is_launched_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "capturing", lambda: True)
    monkeypatch.setattr(torch, "zeros", broken(AssertionError("launched")))
    assert triton.unavailable(torch.device("cuda", 0)) is None
    monkeypatch.setattr(triton, "capturing", lambda: False)
    assert "AssertionError: launched" in (triton.unavailable(torch.device("cuda", 0)) or "")


@pytest.mark.usefixtures("two_gpus")
def test_a_full_gpu_is_not_taken_for_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", broken(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        triton.unavailable(torch.device("cuda", 0))


def broken(error: Exception) -> Callable[..., None]:
    def function(*arguments: object, **named: object) -> None:
        raise error

    return function


def test_the_interpreter_takes_tensors_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.unavailable() is None
    assert triton.supports(torch.device("cpu"))
    assert not triton.supports(torch.device("meta"))


def test_the_package_can_be_imported_where_triton_cannot() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; from roast_optim.kernels import triton; print(triton.unavailable())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "triton is not installed" in result.stdout


def test_what_the_backend_lacks_is_named() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        triton.nonsense  # noqa: B018


# ----------------------------------------------------------------------------------------------- tables on the device


def test_a_table_is_made_once_for_each_stream_and_again_of_other_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(cuda_stream=1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    tables, device = launch.DeviceTables([]), torch.device("cuda", 0)
    made_of = (torch.zeros(2),)
    first = tables.get("selection", device, lambda: torch.ones(1), made_of)
    assert tables.get("selection", device, lambda: torch.ones(1), made_of) is first
    stream.cuda_stream = 2
    assert tables.get("selection", device, lambda: torch.ones(1), made_of) is not first
    stream.cuda_stream = 1
    assert tables.get("selection", device, lambda: torch.ones(1), made_of) is first
    assert tables.get("selection", device, lambda: torch.ones(1), (torch.zeros(2),)) is not first


def test_a_capture_keeps_its_tables_and_what_they_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[torch.Tensor] = []
    tables, made_of = launch.DeviceTables(held), (torch.zeros(2),)
    before = tables.get("selection", torch.device("cpu"), lambda: torch.ones(1), made_of)
    monkeypatch.setattr(launch, "capturing", lambda: True)
    captured = [tables.get("selection", torch.device("cpu"), lambda: torch.ones(1), made_of) for _ in range(2)]
    assert captured[0] is not captured[1]
    assert all(each is not before for each in captured)
    assert [id(each) for each in held] == [id(each) for table in captured for each in (table, *made_of)]
    with pytest.raises(RuntimeError, match="a CUDA graph cannot hold this"):
        launch.DeviceTables().get("selection", torch.device("cpu"), lambda: torch.ones(1))
    monkeypatch.setattr(launch, "capturing", lambda: False)
    assert tables.get("selection", torch.device("cpu"), lambda: torch.ones(1), made_of) is before


def test_a_captured_launch_keeps_the_scalars_that_its_replays_read(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[torch.Tensor] = []
    tables, factor = launch.DeviceTables(held), torch.tensor(0.5)
    tables.keep(factor)
    assert held == []
    monkeypatch.setattr(launch, "capturing", lambda: True)
    tables.keep(factor)
    assert held == [factor]
    with pytest.raises(RuntimeError, match="cannot hold this: its tables would be freed before a replay reads them"):
        launch.DeviceTables().keep(factor)
