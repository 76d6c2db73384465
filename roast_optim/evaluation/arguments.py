"""Numbers on a command line, as types for argparse, and what several commands read from files."""

from __future__ import annotations

import argparse

from .columns import Columns
from .errors import UserError


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


def add_columns(parser: argparse._ActionsContainer) -> None:
    """The options that name the columns of files."""
    add = parser.add_argument
    add("--text-columns", nargs="+", metavar="NAME", help="column of the texts, or the two of pairs; else guessed")
    add("--label-column", metavar="NAME", help="column of the labels; else guessed")


def given_columns(options: argparse.Namespace) -> Columns:
    """What :func:`add_columns` read."""
    if options.text_columns and len(options.text_columns) > 2:
        raise UserError(f"--text-columns {' '.join(options.text_columns)}: give one column, or the two of pairs")
    return Columns(tuple(options.text_columns) if options.text_columns else None, options.label_column)
