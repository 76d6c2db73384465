"""The options of RoastAdamW in one table: default, checks, and what each does; the documentation follows from it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from .kernels.step import SCORE_DTYPES

# What a group counts; in every state_dict.
GROUP_COUNTERS = {"refreshes": 0, "steps_since_refresh": 0}

# refresh_every="auto": the first ranks come after so many steps, the next each after twice as many steps in all, until
# the longest interval, which then stays.
FIRST_INTERVAL = 32
LONGEST_INTERVAL = 1024

Check = tuple[Callable[[Any], bool], str]  # whether a value is right, and what would be
_Class = TypeVar("_Class", bound=type)


@dataclass(frozen=True)
class Option:
    """An option of :class:`.optimizer.RoastAdamW` or of :class:`.adversarial.AdversarialEmbedding`.

    Attributes:
        default: its default value.
        help: what it does.
        checks: that a value must pass, in turn.
        of_group: whether every parameter group can have its own value, which is then saved in a state_dict.
        decides_masks: whether masks depend on it, so that processes and checkpoints must agree on it.
    """

    default: Any
    help: str
    checks: tuple[Check, ...] = ()
    of_group: bool = False
    decides_masks: bool = False


def _is_plain(value: object) -> bool:
    return isinstance(value, Real)


def _is_number(value: object) -> bool:
    return value.numel() == 1 and not value.is_complex() if isinstance(value, Tensor) else _is_plain(value)


def _is_not_negative(value: Any) -> bool:
    return _is_number(value) and bool(value >= 0.0)


def _is_pair_of_decay_rates(betas: Any) -> bool:
    return (
        isinstance(betas, (tuple, list))
        and len(betas) == 2
        and all(_is_number(beta) and bool(0.0 <= beta < 1.0) for beta in betas)
    )


def _is_integer(value: object, least: int, below: int | None = None) -> bool:
    proper = isinstance(value, int) and not isinstance(value, bool)
    return proper and value >= least and (below is None or value < below)  # type: ignore[operator]


_NOT_NEGATIVE: Check = (_is_not_negative, "a non-negative number")
_SWITCH: Check = (lambda value: isinstance(value, int) and value in (0, 1), "True or False")
COUNT: Check = (lambda value: _is_integer(value, 1), "an integer, at least 1")


def one_of(*values: str) -> Check:
    return (lambda value: isinstance(value, str) and value in values, f"one of {values}")


class _NotSaid(int):
    """A switch that nobody has set: equal to True or False, and told from both by its class."""

    def __repr__(self) -> str:
        return repr(bool(self))


# The default of ``selective`` in the constructor, which thereby knows whether anybody has spoken of it.
NOT_SAID_TO_BE_SELECTIVE: Any = _NotSaid(True)


def is_said(switch: object) -> bool:
    """Whether somebody has set a switch."""
    return not isinstance(switch, _NotSaid)


def as_dtype(value: object) -> object:
    """The torch dtype of that name, such as "float32"; anything else as it is."""
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else None
    return dtype if isinstance(dtype, torch.dtype) else value


OPTIONS: dict[str, Option] = {
    "lr": Option(
        1e-3,
        "learning rate; a float or a tensor of one element.",
        (
            (lambda lr: not isinstance(lr, Tensor) or lr.numel() == 1, "a float or a tensor of one element"),
            _NOT_NEGATIVE,
        ),
        of_group=True,
    ),
    "betas": Option(
        (0.9, 0.999),
        "decay rates of the two moments, in [0, 1).",
        (
            (_is_pair_of_decay_rates, "two numbers in [0, 1)"),
            (lambda betas: isinstance(betas[0], Tensor) == isinstance(betas[1], Tensor), "both floats or both tensors"),
        ),
        of_group=True,
    ),
    "eps": Option(1e-8, "added to the denominator after bias correction.", (_NOT_NEGATIVE,), of_group=True),
    "weight_decay": Option(1e-2, "decoupled weight decay, applied before the step.", (_NOT_NEGATIVE,), of_group=True),
    "amsgrad": Option(False, "whether to use the maximum of all second moments so far.", (_SWITCH,), of_group=True),
    "alpha": Option(
        0.9,
        "percentile rank of importance at which the keep probability is one half, in [0, 1]; larger: fewer elements "
        "are updated.",
        ((lambda alpha: _is_plain(alpha) and 0.0 <= alpha <= 1.0, "a percentile rank in [0, 1]"),),
        of_group=True,
        decides_masks=True,
    ),
    "beta": Option(
        10.0,
        "how sharply the keep probability rises around alpha; positive.",
        ((lambda beta: _is_plain(beta) and 0.0 < beta < float("inf"), "a positive, finite number"),),
        of_group=True,
        decides_masks=True,
    ),
    "pretrained_decay": Option(
        0.0,
        "decoupled decay towards the values that the parameters had when their state was made (L2-SP), which are kept "
        "in the state: theta <- theta - lr * pretrained_decay * w * (theta - theta_0), after the weight decay. 0: no "
        "state and no cost.",
        (_NOT_NEGATIVE,),
        of_group=True,
    ),
    "pretrained_decay_by": Option(
        "uniform",
        'what w is: "uniform", 1; "rank", one minus the keep probability, so that what is unimportant returns (0 '
        "before the first ranks, and where nothing is ranked).",
        (one_of("uniform", "rank"),),
        of_group=True,
    ),
    "refresh_every": Option(
        "auto",
        "number of steps (optimizer steps, not micro-batches) after which the ranks are computed anew, or "
        f'"auto": after {FIRST_INTERVAL} steps, then after {2 * FIRST_INTERVAL}, {4 * FIRST_INTERVAL}, ... up to every '
        f"{LONGEST_INTERVAL:,}; None: only when refresh() is called. Until the first ranks everything is updated.",
        (
            (
                lambda every: every is None or every == "auto" or _is_integer(every, 1),
                'a number of steps, at least 1, "auto" or None',
            ),
        ),
    ),
    "mask_schedule": Option(
        "step",
        '"step" draws the masks anew at every step, "refresh" keeps one draw between two refreshes.',
        (one_of("step", "refresh"),),
    ),
    "selection": Option(
        "gradient",
        'what the masks act on: "gradient", as in the paper; "update", where the moments see the whole gradient and '
        "the mask says which elements move in this step. Nothing is rescaled then; decays are never masked.",
        (one_of("gradient", "update"),),
    ),
    "rescale": Option(
        True,
        "whether a kept gradient is divided by its keep probability, so that its expectation is the gradient. A "
        "rescaled gradient saturates at the range of its dtype.",
        (_SWITCH,),
    ),
    "selective": Option(
        True,
        "whether elements are ranked and drawn; False: always updated, no importance, not ranked. Of a module, its "
        "transformer blocks.",
        (_SWITCH,),
        of_group=True,
        decides_masks=True,
    ),
    "importance": Option(
        "gradient",
        'what is ranked: "gradient", the accumulated squared gradients; for ablations "random" (a fixed random rank) '
        'or "magnitude" (of the parameter).',
        (one_of("gradient", "random", "magnitude"),),
    ),
    "importance_every": Option(
        1,
        "accumulate only at every k-th step since the last refresh; not more than refresh_every.",
        (COUNT,),
    ),
    "importance_dtype": Option(
        torch.float32,
        "dtype of the importance, or its name: float32, or bfloat16, which halves its memory. Its sums are then "
        "rounded stochastically, so that they do not stop growing; ranks differ by less than 0.01 on average. What a "
        "checkpoint holds keeps its dtype.",
        ((lambda dtype: dtype in SCORE_DTYPES, f"one of {SCORE_DTYPES}, or the name of one"),),
    ),
    "seed": Option(
        0,
        "key of all draws, 0 <= seed < 2**64. The global random state is never read or changed.",
        ((lambda seed: _is_integer(seed, 0, 2**64), "an integer in [0, 2**64)"),),
        of_group=True,
        decides_masks=True,
    ),
    "state_dtype": Option(
        None,
        "dtype of the moments, or its name; None: the parameter's. Arithmetic is in the wider of the two.",
        (
            (
                lambda dtype: dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point),
                "a floating-point dtype or the name of one, or None for the parameter's",
            ),
        ),
    ),
    "stochastic_rounding": Option(
        False,
        "whether parameters and moments of bfloat16 or float16 are rounded up or down at random, with the value as the "
        "expectation, and not to nearest. A step of less than half a unit in the last place is then not lost, so 16 "
        "bits are enough to train in. A step computes in float32 and rounds once; moments are rounded alike, because "
        "to nearest a second moment of bfloat16 never decays at beta2=0.999. The random bits come from the seed as the "
        "masks do: they are the same on every backend and sharding, and nothing is stored. Tensors of float32 or "
        "float64 stay as they are.",
        (_SWITCH,),
    ),
    "backend": Option(
        "auto",
        '"auto" takes the fastest that can run for the device of the parameters; "triton", "native" and "reference" '
        "ask for one. Masks are the same on all. Never saved in a state_dict.",
    ),
    "maximize": Option(False, "maximise the objective instead of minimising it.", (_SWITCH,), of_group=True),
    "capturable": Option(
        False,
        "keep the step counts on the device, so that a CUDA graph can hold the step, after the first refresh() and one "
        "step. A replayed graph runs no Python: set refresh_every=None and call refresh() between replays. What a "
        "graph cannot hold is refused.",
        (_SWITCH,),
        of_group=True,
    ),
    "process_group": Option(
        None,
        "processes that hold different parameters of one model as plain tensors (pipeline stages), in the order of the "
        "stages: their elements are ranked together, and their parameters numbered one after the other. DTensor "
        "parameters need none: their mesh says how they are sharded.",
    ),
    "shared_ranks": Option(
        None,
        "a SharedRanks that several optimizers of one model have in common (one per parameter, say, which step in the "
        "backward pass): their parameters are numbered one after the other and ranked together. Not saved.",
    ),
}
DEFAULTS: dict[str, Any] = {name: option.default for name, option in OPTIONS.items()}
GROUP_OPTIONS = tuple(name for name, option in OPTIONS.items() if option.of_group)
OPTIONS_OF_MASKS = (*(name for name, option in OPTIONS.items() if option.decides_masks), *GROUP_COUNTERS)


def config_field(name: str, more: str = "", options: Mapping[str, Option] = OPTIONS, **changes: Any) -> Any:
    """A dataclass field for an option, with its default and, as argparse wants it, its help.

    Args:
        name: of the option.
        more: added to the help, where the dataclass does something besides.
        options: the table that it is in.
        changes: ``default``, where the dataclass writes it otherwise.
    """
    option = options[name]
    return field(
        default=changes.get("default", option.default),
        metadata={"help": f"{option.help} {more}".strip().replace("%", "%%")},
    )


def documented(cls: _Class) -> _Class:
    """The class with its docstring's lines ``{options}`` and ``{group options}`` replaced by RoastAdamW's options."""
    assert cls.__doc__ is not None
    said = f"Those of a group: {', '.join(f'``{name}``' for name in GROUP_OPTIONS)}."
    cls.__doc__ = cls.__doc__.replace("        {options}", documentation(OPTIONS))
    cls.__doc__ = cls.__doc__.replace("    {group options}", textwrap.indent(textwrap.fill(said, 116), 4 * " "))
    return cls


def documentation(options: Mapping[str, Option]) -> str:
    """What a table says of its options, as in a docstring's section of arguments."""
    said = [f"{name}: {option.help.replace('`', '``')}" for name, option in options.items()]
    filled = [textwrap.fill(text, 120, initial_indent=8 * " ", subsequent_indent=12 * " ") for text in said]
    return "\n".join(filled)


@dataclass(frozen=True)
class RoastOptions:
    """Options of the whole optimizer, as opposed to those of a parameter group; see :class:`.optimizer.RoastAdamW`."""

    refresh_every: int | str | None
    mask_schedule: str
    selection: str
    rescale: bool
    importance: str
    importance_every: int
    importance_dtype: torch.dtype
    state_dtype: torch.dtype | None
    stochastic_rounding: bool

    @classmethod
    def of(cls, options: dict[str, Any]) -> RoastOptions:
        """Those among all options.

        Raises:
            ValueError: one is out of range.
        """
        own = {each.name: options[each.name] for each in fields(cls)}
        return cls(**{**own, **{name: as_dtype(own[name]) for name in ("importance_dtype", "state_dtype")}})

    def __post_init__(self) -> None:
        for each in fields(self):
            check_option(each.name, getattr(self, each.name))
        if self.refresh_every is not None and self.importance_every > self.interval(0):
            raise out_of_range(
                "importance_every",
                self.importance_every,
                f"at most refresh_every ({self.refresh_every}: {self.interval(0)} steps), or no refresh would find any "
                "importance",
            )

    def interval(self, refreshes: int) -> int:
        """Number of steps between a refresh, the ``refreshes``-th, and the next; 0 if none comes by itself."""
        if self.refresh_every == "auto":
            return min(FIRST_INTERVAL << min(max(refreshes - 1, 0), 32), LONGEST_INTERVAL)
        return int(self.refresh_every or 0)


def group_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of a parameter group among all options, and its counters.

    Raises:
        ValueError: one is out of range.
    """
    group = {**{name: options[name] for name in GROUP_OPTIONS}, **GROUP_COUNTERS}
    check_group(group)
    return {**group, "selective": bool(group["selective"])}


def check_group(group: Mapping[str, Any]) -> None:
    """Raise ValueError for a group option out of range, naming it, its value and what would be right."""
    for name in GROUP_OPTIONS:
        check_option(name, group[name])
    for name in GROUP_COUNTERS:
        if not _is_integer(group[name], 0, 2**32):
            raise out_of_range(name, group[name], "an integer in [0, 2**32)")


def check_option(name: str, value: object) -> None:
    """Raise ValueError for a value out of range, naming the option, the value and what would be right."""
    for is_right, right in OPTIONS[name].checks:
        if not is_right(value):
            raise out_of_range(name, value, right)


def out_of_range(name: str, value: object, right: str) -> ValueError:
    """The error for an option whose value is not right."""
    return ValueError(f"RoastAdamW: invalid {name}={value!r}; it must be {right}")
