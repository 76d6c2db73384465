"""State of a parameter: its tensors follow from the description of a step, and gradients are checked here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .kernels.step import STATE_TENSORS, GroupOptions, Position, StepRow, state_names
from .options import RoastOptions
from .sharding import local, spread_like

State = dict[str, Any]


def make_state(state: State, group: GroupOptions, param: Tensor, options: RoastOptions, parameter_id: int) -> list[str]:
    """Make what the ``state`` of a parameter lacks, given all options; the rest is left as it is.

    A state that has less than AdamW's is not completed: moments that somebody lost are not zero. Importance, rank codes
    and the like begin anew where the parameter has another shape than they.

    Returns:
        The names of what was there and did not fit.

    Raises:
        RuntimeError: the state lacks something that AdamW keeps.
    """
    names, anew = state_names(group), []
    for name in names:
        described = STATE_TENSORS[name]
        if name not in state:
            if state and described.needs is None:
                raise RuntimeError(
                    f"RoastAdamW: the state of parameter {parameter_id}, of shape {tuple(param.shape)}, has no {name}, "
                    f"only {list(state)}: put it there, or delete that optimizer.state to start anew"
                )
        elif described.replaceable and state[name].shape != param.shape:
            anew.append(name)
    missing = [name for name in names if name not in state]
    for name in missing + anew:
        state[name] = STATE_TENSORS[name].make(group, param, options.state_dtype, options.importance_dtype)
    return anew


def step_row(state: State, group: GroupOptions, param: Tensor, position: Position) -> StepRow:
    """The local tensors of a parameter in a step, without its gradient.

    Raises:
        RuntimeError: the parameter has another shape than its state, or lies on another device.
    """
    tensors = {name: state[name] for name in state_names(group)}
    for name, tensor in tensors.items():
        if not STATE_TENSORS[name].per_element:
            continue
        for what, own, of_state in (("shape", param.shape, tensor.shape), ("device", param.device, tensor.device)):
            if own != of_state:
                raise RuntimeError(
                    f"RoastAdamW: parameter {position.parameter_id} has {what} {_said(own)}, its {name} "
                    f"{_said(of_state)}: move its optimizer.state with it, or delete that to start anew"
                )
    return StepRow(param=local(param), position=position, **{name: local(tensor) for name, tensor in tensors.items()})


def _said(value: torch.Size | torch.device) -> object:
    return tuple(value) if isinstance(value, torch.Size) else str(value)


def refuse_sparse_and_complex(params: list[Tensor], grads: list[Tensor]) -> None:
    """Raise RuntimeError if one of the gradients is sparse or complex."""
    for param, grad in zip(params, grads, strict=True):
        if grad.layout is not torch.strided or grad.is_complex():
            kind, cure = (
                ("complex", "optimize torch.view_as_real of the parameter")
                if grad.is_complex()
                else ("sparse", "build embeddings with sparse=False")
            )
            raise RuntimeError(
                f"RoastAdamW does not support {kind} gradients (a parameter of shape {tuple(param.shape)}): {cure}"
            )


def local_gradients(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """The local parts of gradients, spread over processes as their parameters are."""
    return [local(spread_like(param, grad)) for param, grad in zip(params, grads, strict=True)]
