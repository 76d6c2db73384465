"""The error for everything a user can put right: wrong data, unknown names, a broken runs.jsonl."""

from __future__ import annotations


class UserError(ValueError):
    """What was given cannot be used. The message names it and what would be right; the command shows no traceback."""
