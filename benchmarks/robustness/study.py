"""The study: every run that is not recorded yet, one after the other."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .data import TASKS, Suite, sample, texts_of
from .distance import DistanceFromPretrained
from .evaluation import evaluate
from .models import load_classifier
from .progress import Observer, ProgressBar
from .runs import Row, RunStore
from .settings import MethodSettings, Settings, method_settings
from .sources import load_suite
from .training import train

RUNS = "runs.jsonl"
COMPARED_ROWS = 64  # validation texts on which hidden states are compared with the pre-trained model's


def run_study(settings: Settings, console: Console) -> list[Row]:
    """Do all runs of the settings that the output folder does not hold, and return all of them.

    Raises:
        UserError: something given cannot be used; runs that were finished are recorded.
    """
    methods = method_settings(settings)
    path = settings.output / RUNS
    if settings.restart:
        move_aside(path)
    store = RunStore(path)
    console.print(f"Loading data ({settings.data}) ...")
    suite = load_suite(settings.data, TASKS[settings.task], settings.train_set)
    suite = suite.sampled(settings.train_rows, settings.eval_rows)
    if settings.purpose == "tuning":
        suite = suite.for_tuning()
    rows = []
    for identity, method in planned(settings, suite, methods):
        row = store.find(identity)
        if row is None:
            with ProgressBar(console, f"{method.name} {identity['seed']}") as bar:
                row = {**identity, **run_once(settings, suite, method, identity["seed"], bar)}
            store.append(row)
        else:
            console.print(f"{method.name}, seed {identity['seed']}: already in {path}")
        rows.append(row)
    return rows


def planned(settings: Settings, suite: Suite, methods: list[MethodSettings]) -> Iterator[tuple[Row, MethodSettings]]:
    """The identity of every run and the method it is of; all methods of one seed before the next seed."""
    for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
        for method in methods:
            recipe = asdict(method.recipe)
            epochs = recipe.pop("epochs")
            options = {
                **method.create(suite.task).options(),
                **recipe,
                "betas": list(recipe["betas"]),  # as it comes back from JSON
                "data": suite.source,
                "train_set": settings.train_set,
                "eval_rows": settings.eval_rows,
                "attack_rows": settings.attack_rows,
                "max_length": settings.max_length,
            }
            yield (
                {
                    "purpose": settings.purpose,
                    "task": settings.task,
                    "method": method.name,
                    "model": settings.model,
                    "seed": seed,
                    "options": options,
                    "train_rows": len(suite.train),
                    "epochs": epochs,
                },
                method,
            )


def run_once(settings: Settings, suite: Suite, method: MethodSettings, seed: int, observer: Observer) -> dict[str, Any]:
    """Train and evaluate one model: the scores and facts of a run beside its identity."""
    made_by = commit()  # now, since the files may change while it runs
    classifier = load_classifier(settings.model, suite.task, settings.max_length, seed)
    distance = DistanceFromPretrained(classifier, texts_of(sample(suite.validation.rows, COMPARED_ROWS)))
    trajectory: list[dict[str, float]] = []
    seconds = train(
        classifier, method.create(suite.task), suite.train, method.recipe, seed, observer,
        after_epoch=lambda epochs: trajectory.append({"epoch": epochs, **distance.measure()}),
    )  # fmt: skip
    scores = evaluate(classifier, suite, settings.attack_rows, observer)
    return {
        **scores, "seconds": seconds, "trajectory": trajectory, "torch": torch.__version__, "commit": made_by,
    }  # fmt: skip


def commit() -> str | None:
    """The checked-out commit, with "+changes" if files differ from it; None outside a git repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ("git", *arguments), cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def move_aside(path: Path) -> None:
    """Rename a file to the first free of NAME.1, NAME.2, ... so that a new one can begin."""
    if path.exists():
        number = 1
        while (aside := path.with_name(f"{path.name}.{number}")).exists():
            number += 1
        path.rename(aside)
