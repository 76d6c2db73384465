"""State of a parameter, and the lists of tensors that a backend takes for one step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .kernels.backend import Placement
from .sharding import is_sharded, local_part, spread_like

_UNRANKED = 255  # the highest keep probability

State = dict[str, Any]


def make_state(state: State, group: dict[str, Any], param: Tensor, state_dtype: torch.dtype | None) -> None:
    """Fill the empty ``state`` of a parameter before its first step."""
    state["step"] = torch.zeros((), dtype=torch.float32, device=param.device if group["capturable"] else "cpu")
    for moment in ["exp_avg", "exp_avg_sq"] + (["max_exp_avg_sq"] if group["amsgrad"] else []):
        state[moment] = torch.zeros_like(param, dtype=state_dtype, memory_format=torch.preserve_format)
    if group["selective"]:
        make_selection_state(state, group, param)


def make_selection_state(state: State, group: dict[str, Any], param: Tensor) -> None:
    """Importance zero; a parameter whose group is ranked already counts as most important until the next refresh."""
    code = _UNRANKED if group["refreshes"] > 0 else 0
    layout = torch.preserve_format
    state["importance"] = torch.zeros_like(param, dtype=torch.float32, memory_format=layout)
    state["rank_code"] = torch.full_like(param, code, dtype=torch.uint8, memory_format=layout)


@dataclass
class StepTensors:
    """The local tensors of one group on one device that take part in a step; parallel lists."""

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    max_exp_avg_sqs: list[Tensor] = field(default_factory=list)
    state_steps: list[Tensor] = field(default_factory=list)
    importances: list[Tensor] = field(default_factory=list)
    rank_codes: list[Tensor] = field(default_factory=list)
    placements: list[Placement] = field(default_factory=list)

    def append(self, group: dict[str, Any], param: Tensor, grad: Tensor, state: State, placement: Placement) -> None:
        """Add one parameter; optional lists stay empty where the group has no use for them."""
        view = local_part if is_sharded(param) else _itself
        self.params.append(view(param))
        self.grads.append(view(grad))
        self.exp_avgs.append(view(state["exp_avg"]))
        self.exp_avg_sqs.append(view(state["exp_avg_sq"]))
        self.state_steps.append(state["step"])
        self.placements.append(placement)
        if group["amsgrad"]:
            self.max_exp_avg_sqs.append(view(state["max_exp_avg_sq"]))
        if group["selective"]:
            self.importances.append(view(state["importance"]))
            self.rank_codes.append(view(state["rank_code"]))


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def checked_gradient(param: Tensor) -> Tensor | None:
    """The gradient of ``param``, spread over processes as it is.

    Raises:
        RuntimeError: it is sparse or complex.
    """
    grad = param.grad
    if grad is not None and (grad.is_sparse or grad.is_complex()):
        kind = "sparse" if grad.is_sparse else "complex"
        cure = (
            "build embeddings with sparse=False" if grad.is_sparse else "optimize torch.view_as_real of the parameter"
        )
        raise RuntimeError(
            f"RoastAdamW does not support {kind} gradients (a parameter of shape {tuple(param.shape)}): {cure}"
        )
    return None if grad is None else spread_like(param, grad)
