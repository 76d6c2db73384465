"""The option that several commands of the study have, and a type of number for argparse."""

from __future__ import annotations

import argparse
import math
import os

DATA_VARIABLE = "ROAST_DATA"


def add_data(parser: argparse.ArgumentParser) -> None:
    """The option --data; its default is what the environment names, as PATH does, or the demo's packages."""
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="DIR|hub|demo",
        default=tuple(each for each in os.environ.get(DATA_VARIABLE, "").split(os.pathsep) if each) or ("demo",),
        help="folders with a MANIFEST.tsv each, the paper's sets on the hub, or packages",
    )


def length(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= size < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number from 0 up")
    return size
