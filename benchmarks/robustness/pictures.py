"""Pictures of results, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .files import atomic_write
from .metrics import BINS
from .runs import Row

Bins = Mapping[str, numpy.ndarray]


def reliability_diagram(path: Path, rows: Sequence[Row]) -> None:
    """One panel per method: how often predictions of a confidence are right, over all labelled sets and all seeds."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(3.6 * len(methods), 3.8), layout="constrained")
    panels = figure.subplots(1, len(methods), squeeze=False, sharey=True)[0]
    for panel, method in zip(panels, methods, strict=True):
        draw_reliability(panel, method, pooled_bins([row for row in rows if row["method"] == method]))
    panels[0].set_ylabel("share of right predictions")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def pooled_bins(rows: Sequence[Row]) -> Bins:
    """The reliability bins of all sets of all rows, added up."""
    found = [scores["reliability"] for row in rows for scores in row["per_set"].values() if "reliability" in scores]
    return {key: numpy.sum([each[key] for each in found], axis=0) for key in ("rows", "confidence", "right")}


def draw_reliability(panel: Axes, method: str, bins: Bins) -> None:
    filled = bins["rows"] > 0
    count = bins["rows"][filled]
    confidence, right = bins["confidence"][filled] / count, bins["right"][filled] / count
    error = numpy.abs(confidence - right) @ count / count.sum()
    left = numpy.arange(BINS)[filled] / BINS
    panel.bar(left, right, width=1 / BINS, align="edge", color="#4878a8", edgecolor="white", label="right")
    panel.scatter(confidence, right, s=90 * numpy.sqrt(count / count.max()), color="#d1495b", zorder=3,
                  label="mean confidence (size: rows)")  # fmt: skip
    panel.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="calibrated")
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence")
    panel.set_title(f"{method}: {100 * error:.1f}% off\n{100 * right @ count / count.sum():.1f}% right", fontsize=10)
    panel.legend(fontsize=7, loc="upper left")
