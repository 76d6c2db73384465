"""Named sets of options: `preset="paper"` gives those of arXiv 2312.04032, and what is given explicitly wins."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Section 3.2, and the recipe for RoBERTa-large on sentiment; on entailment the paper has alpha=0.6 and beta=1. Ranks
# come once per epoch: call refresh() at its end, as the callbacks for Trainer and Lightning do.
PAPER_OPTIMIZER: dict[str, Any] = {
    "lr": 1e-5,
    "betas": (0.9, 0.98),
    "eps": 1e-6,
    "weight_decay": 0.01,
    "alpha": 0.9,
    "beta": 10.0,
    "refresh_every": None,
    "mask_schedule": "step",
    "selection": "gradient",
    "rescale": True,
    "pretrained_decay": 0.0,
    "importance": "gradient",
    "importance_every": 1,
}
# Section 3.1; the paper chooses the weight of the consistency among 0.01, 0.1 and 0.5.
PAPER_ADVERSARY: dict[str, Any] = {
    "step_size": 0.1,
    "consistency_weight": 0.01,
    "adversarial_weight": 1.0,
    "clean_weight": 1.0,
    "norm": "linf",
    "embedding": None,
    "gradient": "exact",
    "scale": "absolute",
    "ramp": None,
    "share": 1.0,
    "direction": "task",
    "ascents": 1,
    "start_noise": 0.0,
}
OPTIMIZER_PRESETS = {"paper": PAPER_OPTIMIZER}
ADVERSARY_PRESETS = {"paper": PAPER_ADVERSARY}


def takes_preset(presets: Mapping[str, Mapping[str, Any]]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A function whose argument ``preset=`` names the values of those arguments that a call does not give.

    The function itself gets ``preset`` as well, and need not look at it.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function)

        @wraps(function)
        def with_preset(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if (name := kwargs.get("preset")) is not None:
                given = signature.bind_partial(*args, **kwargs).arguments
                rest = {key: value for key, value in preset_of(presets, name).items() if key not in given}
                kwargs.update(rest)
            return function(*args, **kwargs)

        return with_preset

    return decorate


def preset_of(presets: Mapping[str, Mapping[str, Any]], name: object) -> Mapping[str, Any]:
    """The options of that name.

    Raises:
        ValueError: there are none.
    """
    if name not in presets:
        raise ValueError(f"preset={name!r} must be None or one of {tuple(presets)}")
    return presets[name]  # type: ignore[index]
