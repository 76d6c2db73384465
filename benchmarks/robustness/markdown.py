"""The Markdown tables of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from roast_optim.evaluation.scores import PERSPECTIVES, Perspective, mean
from roast_optim.evaluation.tables import percent

from .names import title_of
from .runs import Row
from .summary import ERROR_RATE, Interval, improvement_interval, score_interval, set_score_interval

Runs = Mapping[str, Mapping[int, Row]]  # label of a method -> seed -> its run


def scores_table(runs: Runs) -> str:
    """Methods by perspectives, with cost."""
    plain = runs.get("plain")
    plain_seconds = mean_seconds(plain) if plain else None
    cells = marked_cells(runs, PERSPECTIVES, score_interval)
    lines = [header("Method", *(each.title for each in PERSPECTIVES), "Seconds", "Cost")]
    for label, seeds in runs.items():
        seconds = mean_seconds(seeds)
        cost = f"{seconds / plain_seconds:.2f}" if plain_seconds else "-"
        lines.append(row_of(title_of(label), *cells[label], f"{seconds:.0f}", cost))
    return "\n".join(lines)


def improvements(
    runs: Runs, base: Mapping[int, Row], error_rate: float = ERROR_RATE
) -> dict[str, dict[str, Interval | None]]:
    """Label -> title of the perspective, or "Average" -> relative improvement over the runs `base`, by seed."""
    if not base:
        return {}
    ways: dict[str, tuple[Perspective, ...]] = {each.title: (each,) for each in PERSPECTIVES}
    ways["Average"] = PERSPECTIVES
    return {
        label: {title: improvement_interval(seeds, base, chosen, error_rate) for title, chosen in ways.items()}
        for label, seeds in runs.items()
        if seeds is not base
    }


def improvement_table(found: Mapping[str, Mapping[str, Interval | None]]) -> str:
    """What `improvements` returned."""
    if not found:
        return "No runs of plain fine-tuning, or several with different settings."
    titles = list(next(iter(found.values())))
    lines = [header("Method", *titles)]
    columns = {title: {label: values[title] for label, values in found.items()} for title in titles}
    for label in found:
        lines.append(row_of(title_of(label), *(marked(columns[title], label, 1.0) for title in titles)))
    return "\n".join(lines)


def calibration_and_anomalies_table(runs: Runs) -> str:
    """Methods by both calibration errors and three scores of anomaly detection, means over sets and seeds."""
    scores = (
        Perspective("ece_top_label", "ECE, no temperature", 0.0),
        Perspective("ece", "ECE", 0.0),
        Perspective("auroc", "AUROC", 1.0),
        Perspective("aupr", "AUPR", 1.0),
        Perspective("fpr95", "FPR95", 0.0),
    )
    cells = marked_cells(runs, scores, set_score_interval)
    lines = [header("Method", *(each.title for each in scores))]
    lines += [row_of(title_of(label), *cells[label]) for label in runs]
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
        cells = (percent(values.get(name)) for name in names)
        lines.append(row_of(title_of(label), *cells, percent(worst_group(runs[label]))))
    return "\n".join(lines)


def worst_group(seeds: Mapping[int, Row]) -> float:
    """The least group accuracy of each set, averaged over sets and seeds."""
    found: list[float] = [
        scores["worst_group"] for row in seeds.values() for scores in row["per_set"].values() if "worst_group" in scores
    ]
    return sum(found) / len(found)


def mean_seconds(seeds: Mapping[int, Row]) -> float:
    return sum(float(row["seconds"]) for row in seeds.values()) / len(seeds)


def marked_cells(
    runs: Runs, scores: Sequence[Perspective], interval: Callable[[Mapping[int, Row], str], Interval | None]
) -> dict[str, list[str]]:
    """Label -> a cell per score, with the best of each score marked."""
    columns = {each: {label: interval(seeds, each.key) for label, seeds in runs.items()} for each in scores}
    return {label: [marked(values, label, each.best) for each, values in columns.items()] for label in runs}


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


def groups_table(runs: Runs) -> str:
    """Methods by groups of rows: mean accuracy over the sets that have the group, and the seeds."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    for label, seeds in runs.items():
        mine = found.setdefault(label, {})
        for scores in (each for row in seeds.values() for each in row["per_set"].values() if "groups" in each):
            for kind, accuracies in scores["groups"].items():
                for name, accuracy in accuracies.items():
                    mine.setdefault((kind, name), []).append(accuracy)
    columns = list(dict.fromkeys(group for mine in found.values() for group in mine))
    lines = [header("Method", *(f"{kind.replace('_', ' ')}: {name}" for kind, name in columns))]
    for label, mine in found.items():
        lines.append(row_of(title_of(label), *(percent(mean(mine.get(group, []))) for group in columns)))
    return "\n".join(lines)


def distance_table(runs: Runs) -> str:
    """Methods by epochs: the distances from the pre-trained weights, means over the seeds."""
    epochs = sorted(
        {at["epoch"] for seeds in runs.values() for row in seeds.values() for at in trajectory_of(row)} - {0}
    )
    columns = [(key, epoch) for key in ("l2", "share_moved", "cka") for epoch in epochs]
    titles = {"l2": "L2", "share_moved": "moved", "cka": "CKA"}
    lines = [header("Method", *(f"{titles[key]} {epoch}" for key, epoch in columns))]
    for label, seeds in runs.items():
        cells = []
        for key, epoch in columns:
            value = mean([at[key] for row in seeds.values() for at in trajectory_of(row) if at["epoch"] == epoch])
            cells.append("-" if value is None else f"{100 * value:.0f}%" if key == "share_moved" else f"{value:.2f}")
        lines.append(row_of(title_of(label), *cells))
    return "\n".join(lines)


def trajectory_of(row: Row) -> list[dict[str, float]]:
    """The distances after each epoch; none in a run that did not record them."""
    found: list[dict[str, float]] = row.get("trajectory", [])
    return found
