"""`python -m benchmarks.robustness.report`: Markdown tables and pictures from runs.jsonl."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from . import pictures
from .errors import UserError
from .files import atomic_write
from .runs import Row, read_runs, settings_of
from .summary import PERSPECTIVES, Interval, Perspective, improvement_interval, score_interval
from .tuning import tuning_table

REPORT = "report.md"
Runs = Mapping[str, Mapping[int, Row]]  # label of a method -> seed -> its run


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of the final runs in some files. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="runs.jsonl files")
    parser.add_argument("--output", type=Path, default=Path("build/report"), metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        rows = [row for path in options.runs for row in read_existing(path)]
        write_report(rows, options.output)
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    Console().print(f"Written to {options.output}")
    return 0


def read_existing(path: Path) -> list[Row]:
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    return read_runs(path)


def write_report(rows: Sequence[Row], output: Path) -> None:
    """A section with tables and pictures per task and model.

    Raises:
        UserError: no run has the purpose final or tuning.
    """
    reported = [row for row in rows if row["purpose"] in ("final", "tuning")]
    if not reported:
        raise UserError("no run with purpose final or tuning; nothing to report")
    parts = ["# Robustness\n"]
    for task, model in dict.fromkeys((row["task"], row["model"]) for row in reported):
        chosen = [row for row in reported if (row["task"], row["model"]) == (task, model)]
        final, tuning = ([row for row in chosen if row["purpose"] == purpose] for purpose in ("final", "tuning"))
        name = f"{task}-{Path(model).name}".lower()
        parts.append(f"## {task}, {Path(model).name}\n")
        parts += final_runs(by_method(final), output, name) if final else []
        parts += trials(tuning, output, name) if tuning else []
    with atomic_write(output / REPORT) as file:
        file.write("\n".join(parts).encode())


def by_method(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    """Runs by label and seed. A method that ran with several options has a label for each, which names what differs."""
    variants: dict[str, dict[str, list[Row]]] = {}  # method -> settings as text -> runs
    for row in rows:
        variants.setdefault(row["method"], {}).setdefault(repr(sorted(settings_of(row).items())), []).append(row)
    labelled = {}
    for method, by_settings in variants.items():
        settings = [settings_of(runs[0]) for runs in by_settings.values()]
        varying = [key for key in settings[0] if any(each.get(key) != settings[0][key] for each in settings)]
        for each, runs in zip(settings, by_settings.values(), strict=True):
            suffix = ", ".join(f"{key} {each.get(key)}" for key in varying)
            labelled[f"{method} ({suffix})" if suffix else method] = {run["seed"]: run for run in runs}
    return labelled


def final_runs(runs: Runs, output: Path, name: str) -> list[str]:
    """Markdown of the final runs of one task and model; the pictures are written beside it as NAME-KIND.png."""
    everything = [row for seeds in runs.values() for row in seeds.values()]
    first = everything[0]
    parts = [
        f"{first['train_rows']} training rows, {first['epochs']} epochs, seeds per method: "
        f"{min(map(len, runs.values()))} to {max(map(len, runs.values()))}. Scores in percent, with 95% confidence "
        "intervals of a bootstrap over seeds; best **bold**, second _italic_.\n",
        scores_table(runs),
        "\nRelative improvement over plain: how much of plain's distance to the best value is closed, in percent.\n",
        improvement_table(runs),
        "\nAccuracy per set, and of the worst group (by label, length or rare words; mean over the sets).\n",
        sets_table(runs),
        "",
    ]
    paths = {kind: output / f"{name}-{kind}.png" for kind in ("reliability", "improvement", "shift", "distance")}
    drawn = {
        "reliability": pictures.reliability_diagram(paths["reliability"], two(everything)),
        "improvement": pictures.improvement_bars(paths["improvement"], improvements(runs)),
        "shift": pictures.set_bars(paths["shift"], set_accuracies(runs, "shift")),
        "distance": pictures.distance_curves(paths["distance"], runs),
    }
    return parts + [f"![{kind}]({paths[kind].name})\n" for kind, done in drawn.items() if done]


def trials(tuning: Sequence[Row], output: Path, name: str) -> list[str]:
    """Markdown of the trials on validation rows, with a map of alpha and beta where both were varied."""
    parts = [
        "Trials on validation rows, by which settings are chosen: the mean of the accuracy and of that under our "
        "attack.\n",
        tuning_table(tuning),
        "",
    ]
    path = output / f"{name}-alpha-beta.png"
    return parts + ([f"![alpha-beta]({path.name})\n"] if pictures.alpha_beta_map(path, tuning) else [])


def two(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["method"] in ("plain", "roast")]


def scores_table(runs: Runs) -> str:
    """Methods by perspectives, with cost."""
    plain = runs.get("plain")
    plain_seconds = mean_seconds(plain) if plain else None
    columns = {each: {label: score_interval(seeds, each.key) for label, seeds in runs.items()} for each in PERSPECTIVES}
    lines = [header("Method", *(each.title for each in PERSPECTIVES), "Seconds", "Cost")]
    for label, seeds in runs.items():
        seconds = mean_seconds(seeds)
        cells = [marked(values, label, each.best) for each, values in columns.items()]
        cost = f"{seconds / plain_seconds:.2f}" if plain_seconds else "-"
        lines.append(row_of(label, *cells, f"{seconds:.0f}", cost))
    return "\n".join(lines)


def improvements(runs: Runs) -> dict[str, dict[str, Interval | None]]:
    """Label -> title of the perspective, or "Average" -> relative improvement over plain."""
    if "plain" not in runs:
        return {}
    ways: dict[str, tuple[Perspective, ...]] = {each.title: (each,) for each in PERSPECTIVES}
    ways["Average"] = PERSPECTIVES
    return {
        label: {title: improvement_interval(seeds, runs["plain"], chosen) for title, chosen in ways.items()}
        for label, seeds in runs.items()
        if label != "plain"
    }


def improvement_table(runs: Runs) -> str:
    found = improvements(runs)
    if not found:
        return "No runs of plain fine-tuning."
    titles = list(next(iter(found.values())))
    lines = [header("Method", *titles)]
    columns = {title: {label: values[title] for label, values in found.items()} for title in titles}
    for label in found:
        lines.append(row_of(label, *(marked(columns[title], label, 1.0) for title in titles)))
    return "\n".join(lines)


def set_accuracies(runs: Runs, *roles: str) -> dict[str, dict[str, float]]:
    """Label -> set -> mean accuracy."""
    return {
        label: {
            name: sum(row["per_set"][name]["accuracy"] for row in seeds.values()) / len(seeds)
            for name, scores in next(iter(seeds.values()))["per_set"].items()
            if scores["role"] in roles
        }
        for label, seeds in runs.items()
    }


def sets_table(runs: Runs) -> str:
    found = set_accuracies(runs, "in_distribution", "shift", "adversarial")
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    lines = [header("Method", *names, "Worst group")]
    for label, values in found.items():
        cells = (f"{100 * values[name]:.1f}" if name in values else "-" for name in names)
        lines.append(row_of(label, *cells, f"{100 * worst_group(runs[label]):.1f}"))
    return "\n".join(lines)


def worst_group(seeds: Mapping[int, Row]) -> float:
    """The least group accuracy of each set, averaged over sets and seeds."""
    found: list[float] = [
        scores["worst_group"] for row in seeds.values() for scores in row["per_set"].values() if "worst_group" in scores
    ]
    return sum(found) / len(found)


def mean_seconds(seeds: Mapping[int, Row]) -> float:
    return sum(float(row["seconds"]) for row in seeds.values()) / len(seeds)


def marked(column: Mapping[str, Interval | None], label: str, best: float) -> str:
    """A cell with its interval; the best of its column is bold, the second italic."""
    interval = column[label]
    if interval is None:
        return "-"
    ranked = sorted({each.value for each in column.values() if each is not None}, key=lambda value: abs(best - value))
    text = f"{100 * interval.value:.1f}"
    if interval.value == ranked[0]:
        text = f"**{text}**"
    elif interval.value == ranked[1]:
        text = f"_{text}_"
    if interval.low is not None and interval.high is not None:
        text += f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    return text


def header(*cells: str) -> str:
    return row_of(*cells) + "\n|" + " --- |" + " ---: |" * (len(cells) - 1)


def row_of(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
