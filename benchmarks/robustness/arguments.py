"""Numbers on a command line, as types for argparse."""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> int:
    if (number := not_negative(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def not_negative(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def length(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= size < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number from 0 up")
    return size
