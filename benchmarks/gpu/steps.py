"""Optimizers over one shared list of parameters, as contestants: a model of a billion parameters fits in 78 GiB."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.kernels.contestants import ranked, roast_steps, torch_steps
from benchmarks.kernels.pairs import Contestant
from benchmarks.kernels.workloads import (
    LARGE_WORKLOADS,
    TINY_WORKLOADS,
    WORKLOADS,
    Shapes,
    make_parameters,
    numel,
)
from roast_optim import RoastAdamW

from .report import Report
from .timing import copy_of, figures, in_turn

ROAST, FUSED, FOREACH = "RoAST", "torch AdamW, fused", "torch AdamW, foreach"
PRETRAINED_DECAY = "pretrained_decay"
VARIANTS: dict[str, dict[str, Any]] = {
    ROAST: {},
    f"{ROAST}, importance_every=4": {"importance_every": 4},
    f"{ROAST}, {PRETRAINED_DECAY}": {PRETRAINED_DECAY: 0.01},
}
VARIANTS_OF_16_BITS: dict[str, dict[str, Any]] = {
    f"{ROAST}, stochastic_rounding": {"stochastic_rounding": True},
    f"{ROAST}, stochastic_rounding, importance bfloat16": {
        "stochastic_rounding": True,
        "importance_dtype": torch.bfloat16,
    },
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def shapes_of(workload: str, report: Report) -> Shapes:
    """The tensors of a workload; next to nothing in a dry run, in which a tensor takes some ten milliseconds."""
    shapes = {**WORKLOADS, **LARGE_WORKLOADS}[workload]
    return TINY_WORKLOADS["25M"][1:5] if report.dry_run else shapes


def is_option(name: str) -> bool:
    """Whether this version of RoastAdamW has that option."""
    return name in inspect.signature(RoastAdamW).parameters


def optimizer_over(parameters: Sequence[nn.Parameter], **options: Any) -> RoastAdamW:
    """On the Triton backend, after its first refresh."""
    return ranked(parameters, backend="triton", **options)


def compare_steps(report: Report, workload: str, dtype: str, names: Sequence[str], prefix: str) -> None:
    """Time steps of the optimizers with these names in turn, and a copy; one row each.

    Args:
        report: takes the rows.
        workload: whose tensors.
        dtype: of parameters, gradients and moments.
        names: of VARIANTS or VARIANTS_OF_16_BITS, FUSED or FOREACH.
        prefix: of the names of the rows.
    """
    parameters = make_parameters(shapes_of(workload, report), report.device, DTYPES[dtype])
    contestants: list[Contestant] = []
    for name in names:
        options = {**VARIANTS, **VARIANTS_OF_16_BITS}.get(name)
        if options is None:
            contestants.append(torch_steps("fused" if name == FUSED else "foreach", parameters))
        elif unknown := [option for option in options if not is_option(option)]:
            report.absent(f"{prefix}{name}", f"RoastAdamW has no option {', '.join(unknown)}")
        else:
            contestants.append(roast_steps(name, optimizer_over(parameters, **options)))
    copy = copy_of(contestants[0], report)
    times = in_turn([*contestants, copy], report)
    elements = numel(shapes_of(workload, report))
    for contestant in contestants:
        found = figures(contestant, times, copy, FUSED)
        assert contestant.bytes_moved is not None
        report.measured(f"{prefix}{contestant.name}", bytes_per_element=contestant.bytes_moved / elements, **found)
