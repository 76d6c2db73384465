"""The tables that an evaluation prints: models side by side, and every set."""

from __future__ import annotations


def percent(value: float | None) -> str:
    """A fraction as a percentage; "-" where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"
