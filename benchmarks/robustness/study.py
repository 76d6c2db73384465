"""The study: every run that is not recorded yet, one after the other."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.progress import Observer, ProgressBar

from .data import TASKS, Suite, sample, texts_of
from .distance import DistanceFromPretrained
from .errors import DivergedError
from .evaluation import score_predictions
from .models import load_classifier, weights_digest
from .predictions import Predictions, predict_suite, save_predictions
from .runs import Row, RunStore, canonical, identity_of, succeeded
from .settings import MethodSettings, Settings, known_task, method_settings
from .sources import load_suite
from .sources.files import load_files
from .training import in_precision, train

RUNS = "runs.jsonl"
PREDICTIONS = "predictions"  # folder beside it
COMPARED_ROWS = 64  # validation texts on which hidden states are compared with the pre-trained model's


def run_study(settings: Settings, console: Console) -> list[Row]:
    """Do all runs of the settings that the output folder does not hold, and return all of them that have scores.

    A run that diverges is recorded as failed, and the others go on.

    Raises:
        UserError: something given cannot be used; runs that were finished are recorded.
    """
    methods = method_settings(settings)
    path = settings.output / RUNS
    if settings.restart:
        move_aside(path)
    store = RunStore(path)
    suite = load_data(settings, console)
    suite = suite.sampled(settings.train_rows, settings.eval_rows)
    if settings.purpose == "tuning":
        suite = suite.for_tuning()
    weights = weights_digest(settings.model, suite.task)
    rows = []
    for identity, method in planned(settings, suite, methods):
        identity["content"] = {"data": suite.digest, "weights": weights}
        row = store.find(identity)
        if row is None:
            with ProgressBar(console, f"{method.name} {identity['seed']}") as bar:
                row = record(store, identity, settings, suite, method, bar)
        else:
            console.print(f"{method.name}, seed {identity['seed']}: already in {path}")
        if "failed" in row:
            console.print(f"{method.name}, seed {identity['seed']} failed: {row['failed']}")
        rows.append(row)
    if not (done := succeeded(rows)):
        raise UserError(f"all runs failed; the first: {rows[0]['failed']}")
    return done


def load_data(settings: Settings, console: Console) -> Suite:
    """The whole suite: of the settings' files if there are any, else of their sources."""
    if settings.files is None:
        console.print(f"Loading data ({' '.join(settings.data)}) ...")
        return load_suite(settings.data, TASKS[settings.task], settings.train_set)
    console.print(f"Loading data ({' '.join(settings.files.paths())}) ...", soft_wrap=True)
    suite, notes = load_files(settings.files)
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    return suite


def record(
    store: RunStore, identity: Row, settings: Settings, suite: Suite, method: MethodSettings, observer: Observer
) -> Row:
    """Do a run, keep its predictions beside the store, and add it, failed or not. Returns its row."""
    name = f"{PREDICTIONS}/{digest_of(identity)}.npz"
    try:
        facts, predictions = run_once(settings, suite, method, identity["seed"], observer)
    except DivergedError as error:
        row = {**identity, "failed": str(error), "commit": commit()}
    else:
        save_predictions(store.path.parent / name, predictions)
        row = {**identity, **facts, "predictions": name}
    store.append(row)
    return row


def digest_of(identity: Row) -> str:
    """16 hexadecimal digits that name a run."""
    text = canonical({"content": identity.get("content"), "identity": identity_of(identity)})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def planned(settings: Settings, suite: Suite, methods: list[MethodSettings]) -> Iterator[tuple[Row, MethodSettings]]:
    """The identity of every run and the method it is of; all methods of one seed before the next seed."""
    yield from planned_on(settings, suite.source, len(suite.train), methods)


def planned_on(
    settings: Settings, source: str, train_rows: int, methods: list[MethodSettings]
) -> Iterator[tuple[Row, MethodSettings]]:
    """The same without the data at hand: its name, and how many rows are trained on, are enough."""
    for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
        for method in methods:
            recipe = asdict(method.recipe)
            epochs = recipe.pop("epochs")
            options = {
                **method.create(known_task(settings)).options(),
                **recipe,
                "betas": list(recipe["betas"]),  # as it comes back from JSON
                "data": source,
                "train_set": settings.train_set,
                "eval_rows": settings.eval_rows,
                "attack_rows": settings.attack_rows,
                "max_length": settings.max_length,
            }
            if settings.evaluation_precision != Settings.evaluation_precision:  # not in records from before
                options["evaluation_precision"] = settings.evaluation_precision
            yield (
                {
                    "purpose": settings.purpose,
                    "task": settings.task,
                    "method": method.name,
                    "model": settings.model,
                    "seed": seed,
                    "options": options,
                    "train_rows": train_rows,
                    "epochs": epochs,
                },
                method,
            )


def run_once(
    settings: Settings, suite: Suite, method: MethodSettings, seed: int, observer: Observer
) -> tuple[dict[str, Any], Predictions]:
    """Train and evaluate one model: the scores and facts of a run beside its identity, and what it predicted.

    Raises:
        DivergedError: a loss or a prediction is not finite.
    """
    made_by = commit()  # now, since the files may change while it runs
    classifier = load_classifier(settings.model, suite.task, settings.max_length, seed)
    distance = DistanceFromPretrained(classifier, texts_of(sample(suite.validation.rows, COMPARED_ROWS)))
    trajectory: list[dict[str, float]] = []
    this = method.create(suite.task)
    seconds = train(
        classifier, this, suite.train, method.recipe, seed, observer,
        after_epoch=lambda epochs: trajectory.append({"epoch": epochs, **distance.measure()}),
    )  # fmt: skip
    with in_precision(settings.evaluation_precision, classifier.device):
        predictions = predict_suite(classifier, suite, settings.attack_rows, observer)
    facts = {
        **score_predictions(suite, predictions), "seconds": seconds, "trajectory": trajectory,
        "torch": torch.__version__, "commit": made_by,
    }  # fmt: skip
    if told := this.facts():
        facts["facts"] = told
    return facts, predictions


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
