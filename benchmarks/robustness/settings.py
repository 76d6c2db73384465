"""What a study does: its settings, the presets, and how --set changes a method's options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from roast_optim.evaluation.errors import UserError

from .data import TASKS, Task
from .methods import METHODS, create_method, option_names
from .packaged_models import MINILM
from .sources.files import OWN_DATA, DataFiles
from .training import Method, Recipe

RECIPE_OPTIONS = tuple(each.name for each in fields(Recipe) if each.name != "epochs")


@dataclass(frozen=True)
class Settings:
    """Everything that can be chosen on the command line; see there for the meaning."""

    task: str = "sentiment"
    methods: tuple[str, ...] = ("plain", "roast")
    model: str = MINILM
    data: tuple[str, ...] = ("demo",)
    files: DataFiles | None = None  # in place of `data`; `task` is then OWN_DATA
    train_set: str | None = None
    purpose: str = "final"
    seeds: int = 1
    first_seed: int = 0
    epochs: int = 3
    train_rows: int | None = None
    eval_rows: int | None = None
    attack_rows: int = 0
    max_length: int = 128
    evaluation_precision: str = "float32"  # of the matrix products when a trained model predicts
    changes: tuple[str, ...] = ()
    output: Path = Path("build/robustness")
    restart: bool = False


PRESETS: dict[str, Mapping[str, Any]] = {
    # Sized for six minutes on two cores. The settings that docs/findings.md recommends, from other data.
    "demo": {
        "task": "sentiment",
        "methods": ("plain", "roast"),
        "model": MINILM,
        "data": ("demo",),
        "seeds": 1,
        "epochs": 3,
        "train_rows": 1200,
        "eval_rows": 300,
        "attack_rows": 60,
        "changes": (
            "learning_rate=5e-5",
            "roast.learning_rate=1e-4",
            "roast.alpha=0.6",
            "roast.beta=1",
            "roast.step_size=0.03",
            "roast.gradient=fast",
        ),
        "output": Path("build/demo"),
        "restart": True,
    },
    # One's own files, where no other preset is asked for: what did best in the study's tuning, and seeds to judge by.
    OWN_DATA: {
        "task": OWN_DATA,
        "methods": ("plain", "roast", "wconsol", "lp_ft"),
        "seeds": 5,
        "attack_rows": 100,
        "changes": (
            "learning_rate=5e-5",
            "roast.alpha=0.6",
            "roast.beta=1",
            "roast.step_size=0.03",
            "wconsol.strength=100",
        ),
        "output": Path("build/own_data"),
    },
    # Every method once, to see that it runs; the scores mean nothing.
    "smoke": {
        "task": "sentiment",
        "methods": tuple(METHODS),
        "model": MINILM,
        "data": ("demo",),
        "purpose": "smoke",
        "seeds": 1,
        "epochs": 1,
        "train_rows": 64,
        "eval_rows": 32,
        "attack_rows": 4,
        "max_length": 64,
        "output": Path("build/smoke"),
        "restart": True,
    },
}


@dataclass(frozen=True)
class MethodSettings:
    """A method's name, its options and the recipe that it is trained with."""

    name: str
    recipe: Recipe
    options: Mapping[str, Any]

    def create(self, task: Task) -> Method:
        return create_method(self.name, task, self.options)


def method_settings(settings: Settings) -> list[MethodSettings]:
    """What each method is trained with, after all changes.

    Raises:
        UserError: an unknown task, method or option, or one that is out of range.
    """
    task = known_task(settings)
    for name in settings.methods:
        create_method(name, task, {})
    changes = [parse_change(text, settings.methods) for text in settings.changes]
    found = []
    for name in settings.methods:
        mine = {key: value for methods, key, value in changes if name in methods}
        recipe = replace(
            Recipe(epochs=settings.epochs), **{key: value for key, value in mine.items() if key in RECIPE_OPTIONS}
        )
        options = {key: value for key, value in mine.items() if key not in RECIPE_OPTIONS}
        found.append(MethodSettings(name, recipe, options))
    return found


def known_task(settings: Settings) -> Task:
    """The task; of files only its name is known before they are read.

    Raises:
        UserError: it is unknown.
    """
    if settings.files is not None:
        return Task(settings.task, (), ())
    if settings.task not in TASKS:
        raise UserError(f"task {settings.task!r} is unknown; known: {', '.join(TASKS)}")
    return TASKS[settings.task]


def parse_change(text: str, methods: tuple[str, ...]) -> tuple[tuple[str, ...], str, Any]:
    """Read "KEY=VALUE" (for all methods that have it) or "METHOD.KEY=VALUE": the methods meant, key and value."""
    name, value = parse_assignment(text, "--set", "KEY=VALUE or METHOD.KEY=VALUE")
    method, dot, key = name.rpartition(".")
    if dot and method not in METHODS:
        raise UserError(f"--set {text!r}: method {method!r} is unknown; known: {', '.join(METHODS)}")
    meant = (method,) if dot else methods
    having = tuple(each for each in meant if key in RECIPE_OPTIONS or key in option_names(each))
    if not having:
        known = sorted({*RECIPE_OPTIONS, *(option for each in meant for option in option_names(each))})
        raise UserError(f"--set {text!r}: {', '.join(meant)} has no option {key!r}; known: {', '.join(known)}")
    return having, key, value


def parse_assignment(text: str, option: str, form: str = "KEY=VALUE") -> tuple[str, Any]:
    """The key, and the value read as JSON or, if it is none, as a word.

    Raises:
        UserError: the text, given to the command-line option `option`, has not this form.
    """
    key, equals, written = text.partition("=")
    if not equals or not key or key.endswith("."):
        raise UserError(f"{option} {text!r}: write {form}")
    try:
        return key, json.loads(written)
    except ValueError:
        return key, written  # such as norm=sign
