"""The chart: how long each optimizer's step takes, as a multiple of torch's fused AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from roast_optim.kernels.backend import BACKEND_NAMES

BASELINE = "torch AdamW, fused"
OURS, OTHERS = "#d1495b", "#4878a8"


def draw_chart(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a PNG with a panel per device and list of tensors, and a bar per optimizer in it, shortest first."""
    panels: dict[str, dict[str, float]] = {}
    for row in rows:
        if BASELINE in row.get("opponents", {}):
            panel = panels.setdefault(f"{row['what']}, {row['device']}", {BASELINE: 1.0})
            panel.setdefault(row["candidate"], row["opponents"][BASELINE]["ratio"])
    figure = Figure(figsize=(9, 1.0 + sum(0.8 + 0.3 * len(bars) for bars in panels.values())), layout="constrained")
    heights = [2 + len(bars) for bars in panels.values()]
    axes = figure.subplots(max(len(panels), 1), 1, squeeze=False, sharex=True, height_ratios=heights or None)[:, 0]
    for panel_axes, (title, bars) in zip(axes, panels.items(), strict=False):
        draw_panel(panel_axes, title, bars)
    figure.supxlabel(f"time of a step / {BASELINE} (shorter is better)")
    figure.savefig(path, dpi=150)


def draw_panel(axes: Axes, title: str, bars: dict[str, float]) -> None:
    names = sorted(bars, key=lambda name: -bars[name])  # the last is drawn on top
    colors = [OURS if name.startswith(BACKEND_NAMES) else OTHERS for name in names]
    drawn = axes.barh(names, [bars[name] for name in names], color=colors)
    axes.bar_label(drawn, [f"{bars[name]:.3g}" for name in names], padding=3, fontsize=9)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle="--")
    axes.margins(x=0.12)
    axes.set_title(title, loc="left", fontsize=10)
