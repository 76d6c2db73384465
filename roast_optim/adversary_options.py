"""The options of AdversarialEmbedding in one table: default, checks, and what each does; the documentation follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from .options import COUNT, Check, Option, one_of
from .perturbation import NORMS, SCALES

GRADIENTS = ("exact", "fast")
DIRECTIONS = ("task", "consistency", "noise")


def _is_not_negative(value: Any) -> bool:
    return isinstance(value, (Real, Tensor)) and bool(0.0 <= float(value) < math.inf)


def _is_interval(value: Any) -> bool:
    if value is None:
        return True
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(_is_not_negative(each) for each in value)
    return is_pair and bool(value[0] <= value[1])


_NOT_NEGATIVE: Check = (_is_not_negative, "a finite number from 0 up")

ADVERSARY_OPTIONS: dict[str, Option] = {
    "step_size": Option(
        0.1,
        "length of the perturbation of each token, in units of `scale`; not negative.",
        (_NOT_NEGATIVE,),
    ),
    "consistency_weight": Option(
        0.01,
        "of the consistency loss (lambda in the paper); not negative, as all weights. With 0 no predictions are "
        'needed, unless direction="consistency".',
        (_NOT_NEGATIVE,),
    ),
    "adversarial_weight": Option(1.0, "of the task loss of the adversarial pass.", (_NOT_NEGATIVE,)),
    "clean_weight": Option(1.0, "of the task loss of the clean pass.", (_NOT_NEGATIVE,)),
    "norm": Option(
        "linf",
        'in which `step_size` is measured, with d the gradient of a token: "linf": d / max|d|; "sign": sign(d); "l2": '
        "d / ||d||.",
        (one_of(*NORMS),),
    ),
    "embedding": Option(
        None,
        'what is perturbed. None: the output of the embedding block, whose scale is about 1. "word": the '
        "word-embedding table, whose scale is far smaller (about 0.04), so that it needs a smaller step. Or a module "
        "of the model that returns one tensor [batch, tokens, hidden], once per forward pass.",
    ),
    "gradient": Option(
        "exact",
        '"exact": both predictions of the consistency loss are differentiated; forward and backward cost about 7/3 '
        'of the model\'s. "fast": that of the clean pass is a constant, so that one backward of the clean pass serves '
        "both d and the update (6/3). Its gradients are held until the loss is backpropagated, in the memory of one "
        "more set of gradients. All of the output but the loss is detached. Not for sharded models.",
        (one_of(*GRADIENTS),),
    ),
    "scale": Option(
        "absolute",
        '"absolute": `step_size` is in units of the embeddings. "relative": it is a share of each token\'s own '
        "embedding; the perturbation is that long in the l2 norm, whatever `norm` shapes it. A step of more than a "
        "quarter of the embeddings is said once.",
        (one_of(*SCALES),),
    ),
    "ramp": Option(
        None,
        "(begin, end): the step grows from zero between so many calls in training mode. Up to the first there is no "
        "adversarial pass and no cost of one, and the loss is the clean pass's. Micro-batches are calls. None: full "
        "length from the first call.",
        ((_is_interval, "None or a pair (begin, end) of numbers of calls, 0 <= begin <= end"),),
    ),
    "share": Option(
        1.0,
        "of the rows of each batch that are perturbed, drawn anew at every call, at least one; only they take part in "
        "the adversarial pass, and their losses count by their share. Inputs are cut where their first dimension is "
        "the batch's.",
        ((lambda value: isinstance(value, Real) and 0.0 < float(value) <= 1.0, "a number above 0, at most 1"),),
    ),
    "direction": Option(
        "task",
        'what the perturbation is to enlarge: "task", the task loss; "consistency", the consistency loss, with the '
        'prediction of the clean pass as a constant (SMART), which needs start_noise; "noise": nothing, the direction '
        "is drawn at random and costs no gradient (R3F): uniform in [-1, 1] in every component, which `norm` shapes as "
        'it does d; "linf" leaves it as it is.',
        (one_of(*DIRECTIONS),),
    ),
    "ascents": Option(
        1,
        "number of steps, each of `step_size` / `ascents` along the gradient where the one before has led, so that "
        "`step_size` remains the greatest length. Every step after the first costs a pass and a backward to the "
        "embeddings.",
        (COUNT,),
    ),
    "start_noise": Option(
        0.0,
        "if not 0, the ascent begins beside the embeddings, in a pass of its own: at e + start_noise * U(0, 1), as in "
        "the authors' code with 1e-5 (8/3 of the model's cost); of direction=\"consistency\" U(-1, 1). The noise is no "
        "part of the perturbation.",
        (_NOT_NEGATIVE,),
    ),
}
ADVERSARY_DEFAULTS: dict[str, Any] = {name: option.default for name, option in ADVERSARY_OPTIONS.items()}


def check_adversary_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for a value out of range, or values that exclude each other, with the cure."""
    for name, option in ADVERSARY_OPTIONS.items():
        for is_right, right in option.checks:
            if not is_right(options[name]):
                raise ValueError(f"{name}={options[name]!r} must be {right}")
    direction, start_noise, ascents = (options[name] for name in ("direction", "start_noise", "ascents"))
    if direction == "consistency" and not start_noise:
        raise ValueError(
            'start_noise=0.0: direction="consistency" has no gradient at the embeddings themselves, where both '
            "predictions are the same; use a small start_noise, such as 1e-5"
        )
    if options["gradient"] == "fast" and start_noise:
        raise ValueError(
            f'start_noise={start_noise!r} takes a pass of its own, which gradient="fast" is to save; '
            'use 0 or gradient="exact"'
        )
    if direction == "noise" and (start_noise or ascents > 1):
        name = "ascents" if ascents > 1 else "start_noise"
        raise ValueError(
            f'{name}={options[name]!r}: direction="noise" has no ascent; leave it out, or use direction="task"'
        )
