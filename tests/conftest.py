"""What the tests of optimizer and kernels share: the backends to test, and the vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from roast_optim.kernels.backend import BACKEND_NAMES, load_backend

# The workers of a parallel run share the cores: more threads than cores wait for each other, and tests take minutes.
# What must hold for any number of threads sets it itself.
torch.set_num_threads(1)

# A test is never timed: what an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


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


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Any]:
    """Reads a file of tests/vectors by its name without ending."""
    return lambda name: json.loads((Path(__file__).parent / "vectors" / f"{name}.json").read_text())
