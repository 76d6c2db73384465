"""The methods by name. A variant of a method is an entry with other options, not another class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from roast_optim.evaluation.errors import UserError

from ..data import Task
from ..options import check_options
from ..training import Method
from .candidate import Candidate
from .child_tuning import ChildTuningDriven, ChildTuningFree
from .freelb import FreeLB
from .lp_ft import LinearProbingThenFineTuning
from .plain import Plain
from .r3f import R3F
from .roast import AdversarialOnly, Roast, SelectiveOnly
from .smart import Smart
from .weight_consolidation import WeightConsolidation
from .word_level import WordDropout, WordLevelRoast


@dataclass(frozen=True)
class Entry:
    """A method under a name: its class and the options that make it what the name says."""

    method: type[Method]
    options: Mapping[str, Any] = field(default_factory=dict)


BOUNDED = {"step_size": 0.02, "ramp_begin": 0.2, "ramp_end": 0.6, "hold": 0.2, "bounded": True}
SMOOTH = {"step_size": 0.01, "adversarial_weight": 0.0, "consistency_weight": 1.0, "teacher_weight": 1.0}
HEAD_FIRST = {"head_epochs": 1, "measure_batches": 32, "refresh_every": 50, "importance_decay": 0.9}

METHODS: dict[str, Entry] = {
    "plain": Entry(Plain),
    "advembed": Entry(AdversarialOnly),
    "selective": Entry(SelectiveOnly),
    "wconsol": Entry(WeightConsolidation),
    "roast": Entry(Roast),
    "child_tuning_f": Entry(ChildTuningFree),
    "child_tuning_d": Entry(ChildTuningDriven),
    "freelb": Entry(FreeLB),
    "smart": Entry(Smart),
    "r3f": Entry(R3F),
    "lp_ft": Entry(LinearProbingThenFineTuning),
    "word_dropout": Entry(WordDropout),
    # Ablations: RoAST with one thing changed.
    "roast_random": Entry(Roast, {"importance": "random"}),
    "roast_no_rescaling": Entry(Roast, {"rescale": False}),
    "roast_mask_per_epoch": Entry(Roast, {"mask_schedule": "refresh"}),
    "roast_fast": Entry(Roast, {"gradient": "fast"}),
    # As long as linf's perturbation of a Gaussian gradient in 384 dimensions, 0.65, which is 0.033 in each of them.
    "roast_sign": Entry(Roast, {"norm": "sign", "step_size": 0.033}),
    "roast_l2": Entry(Roast, {"norm": "l2", "step_size": 0.65}),
    # As large a part of the word-embedding table's scale, about 0.04, as 0.1 is of the embedding block's, about 1.
    "roast_word_table": Entry(Roast, {"embedding": "word", "step_size": 0.004}),
    "roast_word_level": Entry(WordLevelRoast),
    # 0.5 task + 0.01 (KL + KL) / 2 summed over a batch of 16; no adversarial loss; d from a third, noisy pass.
    "roast_authors": Entry(
        Roast,
        {"clean_weight": 0.5, "adversarial_weight": 0.0, "consistency_weight": 0.08, "start_noise": 1e-5},
    ),
    # Candidates; the letters are PROTOCOL.md's.
    "select_update": Entry(Candidate, {"selection": "update"}),  # A
    "return_by_rank": Entry(Candidate, {"pull_by": "rank", "pull": 200.0, "beta": 5.0}),  # B
    "bounded_adversary": Entry(Candidate, BOUNDED),  # C
    "smooth_teacher": Entry(Candidate, SMOOTH),  # D
    "head_first": Entry(Candidate, {"selection": "gradient", **HEAD_FIRST}),  # E
    "agreement": Entry(
        Candidate, {"selection": "update", "importance": "agreement", **BOUNDED, "ramp_begin": 0.0}
    ),  # F
    "part_of_batch": Entry(Candidate, {**BOUNDED, "share": 0.5}),  # G
    "combined": Entry(  # A + B + C + E
        Candidate, {"selection": "update", "pull_by": "rank", "pull": 200.0, **BOUNDED, **HEAD_FIRST}
    ),
    "smooth_teacher_pull": Entry(Candidate, {**SMOOTH, "pull": 100.0}),  # D with a uniform return
}


def create_method(name: str, task: Task, options: Mapping[str, Any]) -> Method:
    """A new object of the method `name`.

    Raises:
        UserError: no such method, or it has no such option, or an option is out of range.
    """
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown; known: {', '.join(METHODS)}")
    entry = METHODS[name]
    known = option_names(name)
    for option in options:
        if option not in known:
            raise UserError(f"method {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
    method = entry.method.for_task(task, **{**entry.options, **options})
    try:
        check_options(method)
    except UserError as error:
        raise UserError(f"method {name!r}: {error}") from None
    return method


def option_names(name: str) -> list[str]:
    """The options of a method."""
    return [each.name for each in fields(METHODS[name].method) if each.init]  # type: ignore[arg-type]
