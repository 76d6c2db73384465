"""Global random numbers that a side job uses and gives back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def same_random_numbers_after(device: torch.device) -> Iterator[None]:
    """The random state of Python, NumPy and torch (CPU, and ``device``) is afterwards what it was before."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type not in ("cpu", "meta") else []
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
