"""The reliability diagram, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .files import atomic_write
from .metrics import BINS, ReliabilityBins

BLUE, RED = "#4878a8", "#d1495b"


def reliability_diagram(path: Path, bins: Mapping[str, ReliabilityBins]) -> bool:
    """A panel per label of `bins`: how often predictions of a confidence are right, without any temperature.

    The calibration error of a panel's title is that of all its rows together; it differs from the mean over sets, and
    from errors after a temperature.

    Returns:
        Whether there was something to draw.
    """
    if not bins:
        return False
    figure = Figure(figsize=(3.6 * len(bins), 3.8))
    panels = figure.subplots(1, len(bins), squeeze=False, sharey=True)[0]
    for panel, (label, each) in zip(panels, bins.items(), strict=True):
        draw_reliability(panel, label, each)
    panels[0].set_ylabel("share of right predictions")
    save(figure, path)
    return True


def draw_reliability(panel: Axes, label: str, bins: ReliabilityBins) -> None:
    filled = numpy.array(bins.rows) > 0
    count = numpy.array(bins.rows)[filled]
    confidence, right = numpy.array(bins.confidence)[filled] / count, numpy.array(bins.right)[filled] / count
    error = numpy.abs(confidence - right) @ count / count.sum()
    left = numpy.arange(BINS)[filled] / BINS
    panel.bar(left, right, width=1 / BINS, align="edge", color=BLUE, edgecolor="white", label="right")
    sizes = 90 * numpy.sqrt(count / count.max())
    panel.scatter(confidence, right, s=sizes, color=RED, zorder=3, label="mean confidence (size: rows)")
    panel.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="calibrated")
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence")
    panel.set_title(f"{label}\n{100 * right @ count / count.sum():.1f}% right, ECE {100 * error:.1f}%", fontsize=10)
    panel.legend(fontsize=7, loc="upper left")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150, bbox_inches="tight")
