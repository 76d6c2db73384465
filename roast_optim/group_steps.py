"""What a planned step does in all parameter groups: update them, or only accumulate importance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .backends import tell_fallbacks
from .options import RoastOptions
from .refresh_schedule import count_step
from .step_options import accumulates, step_options
from .step_plans import PlannedStep

Groups = Sequence[dict[str, Any]]
PlannedGroups = Sequence[Sequence[PlannedStep]]


def accumulate_importance(
    param_groups: Groups, planned: PlannedGroups, options: RoastOptions, gradient_factor: float | Tensor
) -> None:
    """Add the squared gradients to the importance, and change nothing else.

    Args:
        param_groups, options: of the optimizer.
        planned: the steps of each group.
        gradient_factor: by what each gradient is multiplied as it is read.
    """
    for group, steps in zip(param_groups, planned, strict=True):
        if accumulates(group, options):
            for _, plan, grads in steps:
                plan.accumulate(grads, gradient_factor)


def update(
    param_groups: Groups,
    planned: PlannedGroups,
    options: RoastOptions,
    gradient_factor: float | Tensor,
    *,
    will_draw: Callable[[int], None],
    warn: Callable[[str], None],
) -> None:
    """Count the step, accumulate importance when it is due, and update the parameters.

    Args:
        param_groups, options: of the optimizer.
        planned: the steps of each group.
        gradient_factor: by what each gradient is multiplied as it is read.
        will_draw: told the seed before masks are drawn.
        warn: told what a fast backend left to the reference.
    """
    for group, steps in zip(param_groups, planned, strict=True):
        count_step(group)
        for device, plan, grads in steps:
            of_step = step_options(group, options, device, gradient_factor)
            if of_step.selection is not None:
                will_draw(of_step.selection.seed)
            plan.step(grads, of_step)
            tell_fallbacks(plan, warn)
