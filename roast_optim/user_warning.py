"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

_OURS = ("roast_optim", "torch")


def warn(message: str) -> None:
    """A UserWarning at the nearest line outside this package and torch, whose wrappers lie between the two."""
    frame: FrameType | None = sys._getframe(1)
    stacklevel = 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        frame = frame.f_back
        stacklevel += 1
    warnings.warn(message, UserWarning, stacklevel=stacklevel)


class WarnOnce:
    """Warns as :func:`warn` does, each message once."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def __call__(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warn(message)
