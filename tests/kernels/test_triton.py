"""The Triton backend without a GPU: what it says of itself, and its kernels in triton's interpreter.

The interpreter must be chosen before triton is imported, which other tests of the same run may long have done.
Therefore its tests run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from roast_optim.kernels import triton

TESTS = Path(__file__).parents[1]
# What runs in the interpreter, and how many tests that are at least: one that collects nothing passes as well.
INTERPRETED = {
    "kernels": (["kernels/triton_interpreted", "kernels/test_backends.py", "kernels/test_stochastic_rounding.py"], 200),
    "conformity": (["roast_optim/test_conformity.py"], 200),
    "random inputs": (["roast_optim/test_random_training.py"], 1),
}


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_tests_of_the_backend_pass_in_the_interpreter(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    files, least = INTERPRETED[name]
    report = tmp_path / "report.xml"
    result = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-k", "triton", "-p", "no:cacheprovider",
            "-W", "ignore::RuntimeWarning", f"--junit-xml={report}", *(str(TESTS / file) for file in files),
        ],
        cwd=TESTS.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    (suite,) = ElementTree.parse(report).getroot()
    assert int(suite.attrib["tests"]) >= least
    assert int(suite.attrib["skipped"]) == 0
    counted = [each.attrib["value"] for each in suite.iter("property") if each.attrib["name"] == "cases on triton"]
    record_property("cases on triton (interpreted)", sum(map(int, counted)))


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
