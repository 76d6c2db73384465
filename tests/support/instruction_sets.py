"""Instruction sets of the native backend that this machine has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from roast_optim.kernels import native


def _has(name: str) -> bool:
    if native.unavailable() is not None:  # no compiler here: tests/test_packaging.py covers that
        return False
    before = native.instruction_set()
    try:
        native.use_instruction_set(name)
    except ValueError:
        return False
    native.use_instruction_set(before)
    return True


INSTRUCTION_SETS = [name for name in ("avx512", "avx2", "portable") if _has(name)]


@contextmanager
def using(instruction_set: str, threads: int = 1) -> Iterator[None]:
    """An instruction set and a number of threads for the calls inside."""
    before, threads_before = native.instruction_set(), torch.get_num_threads()
    try:
        native.use_instruction_set(instruction_set)
        torch.set_num_threads(threads)
        yield
    finally:
        native.use_instruction_set(before)
        torch.set_num_threads(threads_before)
