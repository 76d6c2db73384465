"""Pictures of results, as PNG files. Each function says whether it had something to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from roast_optim.evaluation.metrics import ReliabilityBins
from roast_optim.evaluation.pictures import BLUE, reliability_diagram, save

from .names import title_of
from .runs import Row, canonical, settings_of
from .summary import Interval

CUT = -40.0  # percent
COLOURS = 20  # of the colour map for lines


def reliability_of_runs(path: Path, runs: Mapping[str, Sequence[Row]]) -> bool:
    """One panel per label of `runs`; the rows of all labelled sets and all seeds are pooled."""
    return reliability_diagram(path, {title_of(label): pooled_bins(rows) for label, rows in runs.items()})


def pooled_bins(rows: Sequence[Row]) -> ReliabilityBins:
    """The reliability bins of all sets of all rows, added up."""
    found = [scores["reliability"] for row in rows for scores in row["per_set"].values() if "reliability" in scores]
    return ReliabilityBins.pooled(ReliabilityBins(**each) for each in found)


def improvement_bars(path: Path, improvements: Mapping[str, Mapping[str, Interval | None]]) -> bool:
    """Relative improvement over plain: a panel per perspective, a bar with its interval per method.

    A bar that goes below CUT, as that of a model which learned nothing does, is cut there and its value written on it.
    """
    if not improvements:
        return False
    titles = list(next(iter(improvements.values())))
    figure, panels = panels_of_methods(titles, list(improvements), "relative improvement over plain fine-tuning (%)")
    for panel, title in zip(panels, titles, strict=True):
        panel.axvline(0, color="black", linewidth=0.8)
        for place, values in enumerate(improvements.values()):
            if (each := values[title]) is not None:
                panel.barh(place, max(100 * each.value, CUT), color=BLUE)
                if 100 * each.value < CUT:
                    panel.text(CUT, place, f" {100 * each.value:.0f}", color="white", fontsize=7, va="center")
                elif each.low is not None and each.high is not None:
                    panel.plot([100 * each.low, 100 * each.high], [place, place], color="black", linewidth=1)
        panel.set_xlim(left=max(CUT, panel.get_xlim()[0]))
    save(figure, path)
    return True


def set_points(path: Path, accuracies: Mapping[str, Mapping[str, float]]) -> bool:
    """Accuracy on each set: a panel per set, a point per method; a line is at the first method's."""
    names = list(dict.fromkeys(name for values in accuracies.values() for name in values))
    if not names:
        return False
    figure, panels = panels_of_methods(names, list(accuracies), "accuracy (%)")
    for panel, name in zip(panels, names, strict=True):
        found = [(100 * values[name], place) for place, values in enumerate(accuracies.values()) if name in values]
        panel.axvline(found[0][0], color="black", linewidth=0.8)
        panel.scatter(*zip(*found, strict=True), color=BLUE)
    save(figure, path)
    return True


def panels_of_methods(titles: Sequence[str], labels: Sequence[str], measure: str) -> tuple[Figure, Sequence[Axes]]:
    """A figure with a panel per title, side by side, and a line per method in all of them, from top to bottom."""
    figure = Figure(figsize=(1.6 * len(titles) + 1.5, 0.24 * len(labels) + 1), layout="constrained")
    panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
    panels[0].set_yticks(range(len(labels)), [*map(title_of, labels)])
    panels[0].invert_yaxis()
    figure.supxlabel(measure, fontsize=9)
    return figure, panels


def distance_curves(path: Path, runs: Mapping[str, Mapping[int, Row]]) -> bool:
    """Distance from the pre-trained model after each epoch, a line per method: the mean over its seeds."""
    measured = {
        label: [row["trajectory"] for row in seeds.values() if row.get("trajectory")] for label, seeds in runs.items()
    }
    measured = {label: each for label, each in measured.items() if each}
    if not measured:
        return False
    kinds = {"l2": "L2 distance", "share_moved": "share of elements moved", "cka": "CKA", "cosine": "cosine"}
    figure = Figure(figsize=(3.2 * len(kinds) + 2, max(3.2, 0.18 * len(measured))), layout="constrained")
    for panel, (kind, title) in zip(figure.subplots(1, len(kinds)), kinds.items(), strict=True):
        for number, (label, trajectories) in enumerate(measured.items()):
            epochs = [point["epoch"] for point in trajectories[0]]
            means = numpy.mean([[point[kind] for point in each] for each in trajectories], axis=0)
            style = "-" if number < COLOURS else "--"
            panel.plot(epochs, means, style, marker="o", markersize=3, label=title_of(label), color=colour(number))
        panel.set(xlabel="epochs", title=title)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    save(figure, path)
    return True


def alpha_beta_map(path: Path, rows: Sequence[Row]) -> bool:
    """Validation accuracy of RoAST over alpha and beta, all else being equal; of several runs of a pair the mean."""
    sweeps: dict[str, dict[tuple[float, float], list[float]]] = {}  # the other settings -> alpha and beta -> accuracies
    for row in rows:
        if row["method"] == "roast":
            others = {key: value for key, value in settings_of(row).items() if key not in ("alpha", "beta")}
            pair = (row["options"]["alpha"], row["options"]["beta"])
            sweeps.setdefault(canonical(others), {}).setdefault(pair, []).append(row["acc_in"])
    found = max(sweeps.values(), key=len, default={})
    alphas, betas = (sorted({pair[axis] for pair in found}) for axis in (0, 1))
    if len(alphas) < 2 or len(betas) < 2:
        return False
    grid = numpy.full((len(alphas), len(betas)), numpy.nan)
    for (alpha, beta), scores in found.items():
        grid[alphas.index(alpha), betas.index(beta)] = 100 * numpy.mean(scores)
    figure = Figure(figsize=(4, 3.4), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(grid, cmap="viridis")
    for (line, column), value in numpy.ndenumerate(grid):
        if not numpy.isnan(value):
            panel.text(column, line, f"{value:.1f}", ha="center", va="center", color="white")
    panel.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    panel.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    panel.set(xlabel="beta", ylabel="alpha", title="RoAST: validation accuracy (%)")
    figure.colorbar(image)
    save(figure, path)
    return True


def colour(number: int) -> tuple[float, ...]:
    """The colour of a method by its place; after COLOURS of them they begin again."""
    return tuple(colormaps["tab20"](number % COLOURS))
