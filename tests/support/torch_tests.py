"""PyTorch's own tests of its optimizers, as far as they are installed with it."""

from __future__ import annotations

import sys
import unittest
from importlib.util import find_spec
from types import ModuleType

if find_spec("expecttest") is None:
    # torch.testing._internal needs the name of a base class from it, and nothing else before a test of its own runs.
    stand_in = ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]
    sys.modules["expecttest"] = stand_in

import torch.testing._internal.common_utils  # noqa: F401
from torch.testing._internal.common_optimizers import optim_db

__all__ = ["optim_db"]
