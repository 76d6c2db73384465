"""`python -m benchmarks.robustness.report`: Markdown tables and pictures from runs.jsonl."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from roast_optim.evaluation.errors import UserError, tell
from roast_optim.evaluation.files import atomic_write

from . import pictures
from .markdown import (
    Runs,
    calibration_and_anomalies_table,
    distance_table,
    groups_table,
    improvement_table,
    improvements,
    scores_table,
    set_accuracies,
    sets_table,
)
from .methods import METHODS
from .names import few, title_of
from .runs import Row, canonical, read_runs, settings_of
from .settings import parse_assignment
from .summary import Interval
from .tuning import LEARNED, tuning_table

REPORT = "report.md"
SEEDS_TO_RANK = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of the final runs in some files. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="runs.jsonl files")
    parser.add_argument("--output", type=Path, default=Path("build/report"), metavar="DIR")
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="KEY=VALUE", help="only final runs with these settings, and no trials"
    )
    options = parser.parse_args(arguments)
    try:
        rows = [row for path in options.runs for row in read_existing(path)]
        for text in options.where:
            rows = final_runs_where(rows, text)
        write_report(rows, options.output)
    except UserError as error:
        return tell(error)
    Console().print(f"Written to {options.output}")
    return 0


def read_existing(path: Path) -> list[Row]:
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    return read_runs(path)


def final_runs_where(rows: Sequence[Row], text: str) -> list[Row]:
    """The final runs that have a setting, told as KEY=VALUE, with that value.

    Raises:
        UserError: no final run has it.
    """
    key, value = parse_assignment(text, "--where")
    final = [(row, settings_of(row)) for row in rows if row["purpose"] == "final"]
    having = [(row, settings[key]) for row, settings in final if key in settings]
    found = [row for row, its_value in having if canonical(its_value) == canonical(value)]
    if not found:
        values = sorted({str(its_value) for _, its_value in having})
        known = f"{key} is {', '.join(values)}" if values else f"none has a setting {key!r}"
        raise UserError(f"--where {text!r}: there is no such final run; {known}")
    return found


def write_report(rows: Sequence[Row], output: Path) -> None:
    """A section with tables and pictures per task and model; methods come in the order in which METHODS has them.

    Raises:
        UserError: no run has the purpose final or tuning.
    """
    order = {method: place for place, method in enumerate(METHODS)}
    reported = [row for row in rows if row["purpose"] in ("final", "tuning")]
    reported.sort(key=lambda row: order.get(row["method"], len(order)))
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
        variants.setdefault(row["method"], {}).setdefault(canonical(settings_of(row)), []).append(row)
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
    plain_and_roast = {label: [*seeds.values()] for label, seeds in runs.items() if label in ("plain", *roasts(runs))}
    over_plain = improvements(runs, runs.get("plain", {}))
    same = on_common_seeds(runs)
    ranking = by_average(improvements(same, same.get("plain", {})))
    counts = sorted({len(seeds) for seeds in runs.values()})
    parts = [
        f"{first['train_rows']} training rows, {first['epochs']} epochs, seeds per method: "
        f"{' or '.join(map(str, counts))}. Scores in percent, with 95% confidence "
        "intervals (Student's t, with the standard error of a paired bootstrap over the seeds: other seeds on the same "
        "rows); best **bold**, second _italic_.\n",
        scores_table(runs),
        "\nSeconds are of training alone, whatever else the machine did meanwhile; Cost is their ratio to plain's.\n",
        "\nRelative improvement over plain: how much of plain's distance to the best value is closed, in percent.\n",
        improvement_table(over_plain),
        *([ranking_heading(same), improvement_table(ranking)] if ranking else []),
        *roast_over_the_others(runs),
        "\nCalibration error with the model's own confidences and, as above, with a temperature chosen by "
        "cross-validation; and three measures of how the largest probability tells anomalies from the in-distribution "
        "set. Of both calibration errors and the false positive rate at 95% true positives (FPR95) less is better.\n",
        calibration_and_anomalies_table(runs),
        "\nAccuracy per set, and of the worst group (by label, length or rare words; mean over the sets).\n",
        sets_table(runs),
        "\nAccuracy by group, the mean over the sets: thirds of each set by number of words, and by the share of words "
        "that no training row has.\n",
        groups_table(runs),
        "\nDistance from the pre-trained weights after each epoch: L2, the share of elements that moved by more than a "
        "hundredth of their tensor's standard deviation, and linear CKA of the last hidden states.\n",
        distance_table(runs),
        "",
    ]
    paths = {kind: output / f"{name}-{kind}.png" for kind in ("reliability", "improvement", "shift", "distance")}
    drawn = {
        "reliability": pictures.reliability_of_runs(paths["reliability"], plain_and_roast),
        "improvement": pictures.improvement_bars(paths["improvement"], few_of(ranking or by_average(over_plain))),
        "shift": pictures.set_points(paths["shift"], set_accuracies(runs, "shift")),
        "distance": pictures.distance_curves(paths["distance"], runs),
    }
    captions = {
        **dict.fromkeys(drawn, ""),
        "improvement": "Relative improvement of at most six methods, the best first:\n\n",
    }
    return parts + [f"{captions[kind]}![{kind}]({paths[kind].name})\n" for kind, done in drawn.items() if done]


def on_common_seeds(runs: Runs) -> dict[str, dict[int, Row]]:
    """Every method with the seeds that all methods have, where they ran with different numbers of them.

    A mean of five seeds and one of three are of different runs of plain fine-tuning too: put side by side they rank
    nobody. Methods with fewer than three seeds are left out. Nothing if all methods have the same seeds.
    """
    enough = {label: seeds for label, seeds in runs.items() if len(seeds) >= SEEDS_TO_RANK}
    common = set.intersection(*map(set, enough.values())) if "plain" in enough else set()
    if len(common) < SEEDS_TO_RANK or all(set(seeds) == common for seeds in enough.values()):
        return {}
    return {label: {seed: seeds[seed] for seed in sorted(common)} for label, seeds in enough.items()}


def ranking_heading(same: Runs) -> str:
    seeds = ", ".join(map(str, same["plain"]))
    return f"\nThe same on the seeds that all of these have, {seeds}, by average.\n"


def by_average(found: Mapping[str, Mapping[str, Interval | None]]) -> dict[str, Mapping[str, Interval | None]]:
    """What `improvements` returned, the best average first."""

    def average(label: str) -> float:
        interval = found[label]["Average"]
        return interval.value if interval is not None else float("-inf")

    return {label: found[label] for label in sorted(found, key=average, reverse=True)}


def few_of(ranked: Mapping[str, Mapping[str, Interval | None]]) -> dict[str, Mapping[str, Interval | None]]:
    """What a bar chart shows of them: more than six methods are for the table."""
    return {label: ranked[label] for label in few([*ranked])}


def roast_over_the_others(runs: Runs) -> list[str]:
    """Markdown: what RoAST gains over each method, which for an ablation is what the changed part is worth.

    Where it ran with several settings, there is a table for each.
    """
    parts = []
    for roast in roasts(runs):
        others = {label: seeds for label, seeds in runs.items() if label not in ("plain", roast)}
        if others:
            gains = {label: improvements({roast: runs[roast]}, seeds)[roast] for label, seeds in others.items()}
            parts += [
                f"\nRelative improvement of {title_of(roast)} over each of the other methods, on the seeds that both "
                "have, in percent.\n",
                improvement_table(gains),
            ]
    return parts


def roasts(runs: Runs) -> list[str]:
    """The labels under which RoAST ran."""
    return [label for label, seeds in runs.items() if next(iter(seeds.values()))["method"] == "roast"]


def trials(tuning: Sequence[Row], output: Path, name: str) -> list[str]:
    """Markdown of the trials on validation rows, with a map of alpha and beta where both were varied."""
    parts = [
        "Trials on validation rows, by which settings are chosen: the mean of the accuracy and of that under our "
        f"attack, of those within {100 * LEARNED:.0f} points of the method's best accuracy.\n",
        tuning_table(tuning),
        "",
    ]
    path = output / f"{name}-alpha-beta.png"
    return parts + ([f"![alpha-beta]({path.name})\n"] if pictures.alpha_beta_map(path, tuning) else [])


if __name__ == "__main__":
    sys.exit(main())
