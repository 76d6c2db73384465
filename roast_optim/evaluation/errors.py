"""The error for everything a user can put right: a wrong file, an unknown name or label."""

from __future__ import annotations

from rich.console import Console

FAILED = 2  # the exit status of a command that could not use what it was given
LONGEST = 1_000  # characters of a message, which must fit a screen whatever was given


class UserError(ValueError):
    """What was given cannot be used. The message names it and what would be right; the command shows no traceback.

    Of a long message the middle is left out: names stand at its beginning, cures at its end.
    """

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST:
            left_out = len(message) - LONGEST
            message = f"{message[: LONGEST // 2]} [... {left_out:,} characters ...] {message[-LONGEST // 2 :]}"
        super().__init__(message)


def tell(error: UserError) -> int:
    """Print the error on stderr, and return the command's exit status."""
    Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    return FAILED
