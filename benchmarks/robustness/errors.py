"""The error for everything a user can put right: wrong data, unknown names, a broken runs.jsonl."""

from __future__ import annotations

from rich.console import Console

FAILED = 2  # the exit status of a command that could not use what it was given


class UserError(ValueError):
    """What was given cannot be used. The message names it and what would be right; the command shows no traceback."""


class DivergedError(UserError):
    """A training whose loss or predictions are not finite: a result of its settings, not a fault of the study."""


SHOWN = 200  # characters of what somebody gave; a message must fit a screen


def shortened(text: str) -> str:
    """The text, or its beginning with a word on its length."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def tell(error: UserError) -> int:
    """Print the error on stderr, and return the command's exit status."""
    Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    return FAILED
