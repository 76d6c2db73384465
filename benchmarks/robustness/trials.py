"""The settings that are tried of every method, and those that follow from what the trials choose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .methods.roast import AdversarialOnly


@dataclass(frozen=True)
class Trial:
    """A method with options that differ from its defaults.

    Args:
        epochs: passes over the training rows, where they are not the regime's: for comparisons at equal time.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None

    def changes(self) -> tuple[str, ...]:
        """As --set takes them."""
        return tuple(f"{key}={json.dumps(value)}" for key, value in self.options.items())


@dataclass(frozen=True)
class Derived:
    """A setting that follows from the one that another method's trials choose.

    Args:
        of: that method.
        changes: options that differ from it.
        method: another method that takes over only the learning rate.
        among: options; the trials that have them are all that is chosen from, by the first seed.
        regime: in whose trials; None: the regime's own.
        step_factor: by what a step in units of the embeddings is multiplied.
        rate_of_plain: whether the learning rate is multiplied by what the regime's own trials chose for plain
            fine-tuning, over what those of the other regime did.
    """

    of: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    among: Mapping[str, Any] = field(default_factory=dict)
    regime: str | None = None
    rate_of_plain: bool = False
    step_factor: float = 1.0

    def trial(self, chosen: Trial, rate_factor: float = 1.0) -> Trial:
        """The setting, given the chosen one."""
        kept = dict(chosen.options if self.method is None else {"learning_rate": chosen.options["learning_rate"]})
        if rate_factor != 1.0:
            kept["learning_rate"] = rounded(kept["learning_rate"] * rate_factor)
        if self.step_factor != 1.0:
            kept["step_size"] = rounded(kept.get("step_size", AdversarialOnly.step_size) * self.step_factor)
        return Trial(self.method or chosen.method, {**kept, **self.changes})

    def candidates(self, trials: Mapping[str, Sequence[Trial]]) -> list[Trial]:
        """Those that the choice is among, of a regime's trials."""
        return [each for each in trials[self.of] if self.among.items() <= each.options.items()]


def tried(method: str, *settings: tuple[float, Mapping[str, Any]]) -> tuple[Trial, ...]:
    """Trials of a method, each by its learning rate and its other options."""
    return tuple(Trial(method, {"learning_rate": rate, **options}) for rate, options in settings)


def by_rate(method: str, *rates: float, **options: Any) -> tuple[Trial, ...]:
    return tried(method, *((rate, options) for rate in rates))


def at_rates(trials: Sequence[Trial], factor: float) -> tuple[Trial, ...]:
    """The trials with their learning rates multiplied."""
    return tuple(
        replace(each, options={**each.options, "learning_rate": rounded(each.options["learning_rate"] * factor)})
        for each in trials
    )


def rounded(value: float) -> float:
    """Three digits, as settings are written."""
    return float(f"{value:.3g}")


def selection(alpha: float, beta: float, **options: Any) -> dict[str, Any]:
    return {"alpha": alpha, "beta": beta, **options}


# Of both methods whose mask comes after the moments; with a mask there, larger learning rates are worth a trial.
AFTER_THE_MOMENTS = (
    (5e-5, selection(0.6, 1.0)),
    (1e-4, selection(0.6, 1.0)),
    (2e-4, selection(0.6, 1.0)),
    (1e-4, selection(0.6, 5.0)),
    (2e-4, selection(0.6, 5.0)),
    (2e-4, selection(0.9, 5.0)),
)

TRIALS: dict[str, tuple[Trial, ...]] = {
    "plain": by_rate("plain", 2e-5, 3e-5, 4e-5, 5e-5, 7e-5, 1e-4),
    "roast": tried(
        "roast",
        (5e-5, selection(0.9, 10.0)),
        (1e-4, selection(0.9, 10.0)),
        (5e-5, selection(0.6, 1.0)),
        (1e-4, selection(0.6, 1.0)),
        (5e-5, selection(0.6, 1.0, step_size=0.03)),
        (1e-4, selection(0.6, 1.0, step_size=0.03)),
    ),
    "smooth_teacher": tried(
        "smooth_teacher",
        (5e-5, {}),
        (1e-4, {}),
        (5e-5, {"step_size": 0.02}),
        (5e-5, {"consistency_weight": 0.3, "teacher_weight": 0.3}),
        (1e-4, {"consistency_weight": 0.3, "teacher_weight": 0.3}),
        (5e-5, {"step_size": 0.02, "consistency_weight": 3.0, "teacher_weight": 0.3}),
    ),
    "smooth_teacher_pull": tried(
        "smooth_teacher_pull",
        (5e-5, {}),
        (1e-4, {}),
        (1e-4, {"pull": 200.0}),
        (1e-4, {"step_size": 0.02}),
        (1e-4, {"consistency_weight": 0.3, "teacher_weight": 0.3}),
        (1e-4, {"consistency_weight": 0.3, "teacher_weight": 0.3, "pull": 200.0}),
    ),
    "select_update": tried("select_update", *AFTER_THE_MOMENTS),
    "return_by_rank": tried(
        "return_by_rank",
        (5e-5, {"pull": 100.0}),
        (5e-5, {"pull": 200.0}),
        (5e-5, {"pull": 400.0}),
        (1e-4, {"pull": 100.0}),
        (1e-4, {"pull": 200.0}),
        (1e-4, {"pull": 400.0}),
    ),
    "bounded_adversary": tried(
        "bounded_adversary",
        (5e-5, {"hold": 0.0}),
        (5e-5, {}),
        (1e-4, {}),
        (3e-5, {}),
        (5e-5, {"hold": 0.1, "consistency_weight": 0.5}),
        (5e-5, {"hold": 0.0, "step_size": 0.04}),
    ),
    "combined": tried(
        "combined",
        (5e-5, {"pull": 100.0}),
        (1e-4, {"pull": 100.0}),
        (1e-4, {"pull": 200.0}),
        (2e-4, {"pull": 100.0}),
        (2e-4, {"pull": 200.0}),
        (1e-4, {"pull": 200.0, "beta": 5.0}),
    ),
    "head_first": tried(
        "head_first",
        (5e-5, selection(0.6, 1.0)),
        (1e-4, selection(0.6, 1.0)),
        (5e-5, selection(0.9, 10.0)),
        (1e-4, selection(0.9, 10.0)),
        (1e-4, selection(0.6, 5.0)),
        (1e-4, selection(0.6, 1.0, importance="movement")),
    ),
    "agreement": tried("agreement", *AFTER_THE_MOMENTS),
    "wconsol": tried(
        "wconsol",
        (5e-5, {"strength": 100.0}),
        (5e-5, {"strength": 200.0}),
        (1e-4, {"strength": 100.0}),
        (1e-4, {"strength": 200.0}),
        (1e-4, {"strength": 400.0}),
        (2e-4, {"strength": 200.0}),
    ),
    "lp_ft": by_rate("lp_ft", 2e-5, 3e-5, 4e-5, 5e-5, 7e-5, 1e-4),
    "smart": tried(
        "smart",
        (5e-5, {}),
        (1e-4, {}),
        (3e-5, {}),
        (5e-5, {"smoothness_weight": 0.3, "proximal_weight": 0.3}),
        (5e-5, {"smoothness_weight": 3.0}),
        (5e-5, {"proximal_weight": 0.3}),
    ),
    "freelb": tried(
        "freelb",
        (5e-5, {}),
        (1e-4, {}),
        (3e-5, {}),
        (7e-5, {}),
        (5e-5, {"step_size": 0.1, "largest": 0.6}),
        (5e-5, {"largest": 0.1}),
    ),
}

RANDOM = {"importance": "random"}
CONTROLS: dict[str, Derived] = {
    **{
        f"{name} (random ranks)": Derived(name, RANDOM)
        for name in ("select_update", "return_by_rank", "head_first", "agreement", "combined")
    },
    "return_by_rank (even pull)": Derived("return_by_rank", {"pull_by": "uniform"}),
    "bounded_adversary (constant step)": Derived(
        "bounded_adversary", {"hold": 0.0, "ramp_begin": 0.0, "ramp_end": 0.0, "bounded": False}
    ),
    "part_of_batch": Derived("bounded_adversary", {"share": 0.5}),
    "smooth_teacher (no adversary)": Derived("smooth_teacher", {"step_size": 0.0}),
    "smooth_teacher (no teacher)": Derived("smooth_teacher", {"teacher_weight": 0.0}),
}
AT_EQUAL_RATE = {
    f"plain (learning rate of {name})": Derived(name, method="plain") for name in TRIALS if name != "plain"
}
