"""What a CUDA graph cannot hold of a step: replays run no Python, so what the host decides stays as it was captured.

Whatever would make replays differ from eager steps is refused, with what to do about it. Read on the device, and so
right in every replay, are step counts, importance, rank codes, gradients, and a learning rate that is a tensor there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .kernels.capture import capturing
from .kernels.step import state_names
from .options import RoastOptions
from .state import State

_STEP_FIRST = "take one step before the capture"


def refuse_capture_of_step(
    groups: Sequence[dict[str, Any]],
    state: Mapping[Tensor, State],
    options: RoastOptions,
    measuring: bool,
    has_stepped: bool,
) -> None:
    """Raise RuntimeError if a CUDA graph is being captured and its replays would differ from eager steps.

    Args:
        groups, state, options: of the optimizer.
        measuring: whether the step accumulates importance and does nothing else.
        has_stepped: whether this optimizer has taken a step in this process.
    """
    if not capturing():
        return
    problems = [*_of_state(groups, state, has_stepped), *([] if measuring else _of_options(groups, options))]
    if problems:
        raise RuntimeError(f"RoastAdamW: a CUDA graph cannot hold this step: {'; '.join(problems)}")


def refuse_capture_of_refresh() -> None:
    """Raise RuntimeError if a CUDA graph is being captured."""
    if capturing():
        raise RuntimeError(
            "RoastAdamW: a CUDA graph cannot hold refresh(), which waits for the device: call it between replays, the "
            "next of which take the new ranks"
        )


def _of_options(groups: Sequence[dict[str, Any]], options: RoastOptions) -> list[str]:
    problems = []
    not_capturable = [number for number, group in enumerate(groups) if not group["capturable"]]
    if not_capturable:
        problems.append(
            f"capturable=False of group {not_capturable[0]}, so that all replays would have one step count and one "
            "mask: construct the optimizer with capturable=True"
        )
    selective = [number for number, group in enumerate(groups) if group["selective"]]
    if not selective:
        return problems
    unranked = [number for number in selective if groups[number]["refreshes"] == 0]
    if unranked:
        problems.append(
            f"group {unranked[0]} has no ranks, so that no replay would ever mask: take a step inside "
            f"measure_importance(), call refresh() and {_STEP_FIRST}"
        )
    if options.refresh_every is not None:
        problems.append(
            f"refresh_every={options.refresh_every!r} would never come due: set refresh_every=None and call refresh() "
            "between replays"
        )
    if options.mask_schedule == "refresh":
        problems.append(
            'mask_schedule="refresh" takes the number of its draw from the host, so that all replays would have one '
            'mask: set mask_schedule="step"'
        )
    if options.importance_every != 1 and options.importance == "gradient":
        problems.append(
            f"importance_every={options.importance_every} is counted on the host: set importance_every=1, or measure "
            "the importance between replays"
        )
    return problems


def _of_state(groups: Sequence[dict[str, Any]], state: Mapping[Tensor, State], has_stepped: bool) -> list[str]:
    if not has_stepped:
        return [f"this optimizer has taken no step yet: {_STEP_FIRST}"]
    parameter_id = 0
    for group in groups:
        for param in group["params"]:
            if param.grad is not None:
                missing = [name for name in state_names(group) if name not in state.get(param, {})]
                if missing:
                    return [
                        f"parameter {parameter_id} has no {missing[0]} yet, which every replay would begin anew: "
                        f"{_STEP_FIRST}"
                    ]
                if param.device.type == "cpu":
                    return [f"parameter {parameter_id} lies on the CPU, which no replay would move: move it to the GPU"]
            parameter_id += 1
    return []
