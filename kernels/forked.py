"""Processes that were forked: the threads of the OpenMP runtime did not come with them, and waiting for them hangs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_forked = False


def _after_fork_in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def threads() -> int:
    """Number of threads for a call of the native library: torch's; one in a forked process."""
    return 1 if _forked else torch.get_num_threads()


@contextmanager
def without_lost_threads() -> Iterator[None]:
    """In a forked process torch uses one thread inside; elsewhere nothing changes."""
    if not _forked:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
