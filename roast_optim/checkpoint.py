"""Loading a state_dict: checks before anything changes, and the dtypes that torch's loader would lose."""

from __future__ import annotations

import warnings
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .options import GROUP_COUNTERS, check_group
from .sharding import local
from .state import make_selection_state

if TYPE_CHECKING:
    from .optimizer import RoastAdamW

_SELECTION_KEYS = ("importance", "rank_code")


def check(optimizer: RoastAdamW, state_dict: dict[str, Any]) -> None:
    """Raise ValueError, naming what is wrong, if ``state_dict`` does not fit the optimizer."""
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(f"state_dict has no {key!r}, only {list(state_dict)}: pass what state_dict() returned")
    groups, saved_groups = optimizer.param_groups, state_dict["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved_groups]:
        raise ValueError(
            "state_dict has parameter groups of sizes "
            f"{[len(group['params']) for group in saved_groups]}, the optimizer of "
            f"{[len(group['params']) for group in groups]}: build the optimizer with the parameters it was saved with"
        )
    for group, saved in zip(groups, saved_groups, strict=True):
        check_group({**group, **{key: value for key, value in saved.items() if key != "params"}})
        for param, index in zip(group["params"], saved["params"], strict=True):
            for key in _required_keys(saved, state_dict["state"].get(index)):
                value = state_dict["state"][index].get(key)
                if not isinstance(value, Tensor):
                    raise ValueError(f"state_dict: parameter {index} lacks {key}, or it is not a tensor")
                if value.shape != param.shape:
                    raise ValueError(
                        f"state_dict: {key} of parameter {index} has shape {tuple(value.shape)}, the parameter has "
                        f"{tuple(param.shape)}: it was saved for another model"
                    )
                _check_values(key, index, local(value))


def _check_values(key: str, index: int, value: Tensor) -> None:
    """Raise ValueError for rank codes and importance that no optimizer has saved: kernels look them up in tables."""
    if key == "rank_code" and value.dtype != torch.uint8:
        raise ValueError(f"state_dict: rank_code of parameter {index} is {value.dtype}, not torch.uint8: it is damaged")
    if key == "importance" and value.numel():
        smallest, largest = value.aminmax()  # NaN if there is one
        if not (smallest >= 0 and largest <= torch.finfo(torch.float32).max):
            raise ValueError(
                f"state_dict: importance of parameter {index} lies between {float(smallest)} and {float(largest)}, not "
                "between 0 and the largest float32: it is damaged"
            )


def _required_keys(saved_group: dict[str, Any], saved_state: dict[str, Any] | None) -> list[str]:
    if not saved_state:
        return []
    keys = ["exp_avg", "exp_avg_sq"]
    keys += ["max_exp_avg_sq"] if saved_group.get("amsgrad") else []
    # One of the two without the other is a damaged checkpoint; neither is one of plain AdamW.
    keys += _SELECTION_KEYS if any(key in saved_state for key in _SELECTION_KEYS) else ()
    return keys


def reattach(optimizer: RoastAdamW, state_dict: dict[str, Any]) -> None:
    """Undo the casts of ``torch.optim.Optimizer.load_state_dict``, and complete what plain AdamW does not save.

    The base class casts every state tensor of a floating-point parameter to the parameter's dtype: rank codes and
    float32 importance of a bfloat16 parameter too.
    """
    params = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    indices = list(chain.from_iterable(group["params"] for group in state_dict["param_groups"]))
    for param, index in zip(params, indices, strict=True):
        for key, value in state_dict["state"].get(index, {}).items():
            if key != "step" and isinstance(value, Tensor):
                optimizer.state[param][key] = value.to(device=param.device)

    foreign = False
    for group in optimizer.param_groups:
        for key, default in {**optimizer.defaults, **GROUP_COUNTERS}.items():
            if key != "differentiable":  # no option of ours; the base class adds it to the defaults when it loads
                group.setdefault(key, default)
        for param in group["params"]:
            if group["selective"] and optimizer.state.get(param) and "rank_code" not in optimizer.state[param]:
                make_selection_state(optimizer.state[param], group, param)
                foreign = True
    if foreign:
        warnings.warn(
            "the state_dict was saved by an optimizer without selection (AdamW): its moments are taken, importance "
            "starts at zero and everything is updated until the next refresh",
            UserWarning,
            stacklevel=5,
        )
