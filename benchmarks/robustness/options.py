"""Options with a type and a range: the fields of dataclasses, whose values come from the command line."""

from __future__ import annotations

import math
from dataclasses import field, fields
from typing import Any

from roast_optim.evaluation.errors import UserError


def option(default: Any, *, least: float = 0.0, most: float = math.inf) -> Any:
    """A field for a number in this range, both ends included."""
    return field(default=default, metadata={"least": least, "most": most})


def check_options(options: Any) -> None:
    """Check the fields of a dataclass that are set from outside.

    Raises:
        UserError: a value is not of its default's type, or out of range.
    """
    for each in fields(options):
        if not each.init:
            continue
        value = getattr(options, each.name)
        least, most = each.metadata.get("least", -math.inf), each.metadata.get("most", math.inf)
        if expected := problem_of(value, each.default, least, most):
            raise UserError(f"{each.name} is {value!r}; give {expected}")


def problem_of(value: Any, default: Any, least: float, most: float) -> str | None:
    """What should be given instead of a value, or None if it fits."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if is_number(default):
        whole = isinstance(default, int)
        fits = is_number(value) and math.isfinite(value) and least <= value <= most
        if fits and (isinstance(value, int) or not whole):
            return None
        bounds = ("" if least == -math.inf else f" from {least:g}") + ("" if most == math.inf else f" to {most:g}")
        return ("a whole number" if whole else "a number") + bounds
    if isinstance(default, str):
        return None if isinstance(value, str) else "a word"
    if isinstance(default, tuple):
        return None if isinstance(value, (list, tuple)) else "a list"
    return None if value is None or isinstance(value, str) else "a word or null"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
