"""Loading a state_dict: checks before anything changes, and the dtypes that torch's loader would lose."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .group_checks import NOT_SUPPORTED
from .kernels.step import SCORE_DTYPES, STATE_TENSORS, DtypeOf, TensorField, state_names
from .options import GROUP_COUNTERS, OPTIONS_OF_MASKS, RoastOptions, check_group
from .sharding import local, sharding_of
from .state import State, make_state
from .user_warning import warn


def check(groups: list[dict[str, Any]], state_dict: dict[str, Any]) -> None:
    """Raise ValueError, naming what is wrong, if ``state_dict`` does not fit the parameter groups."""
    states, saved_groups = _checked_parts(state_dict)
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved_groups]:
        raise ValueError(
            "state_dict has parameter groups of sizes "
            f"{[len(group['params']) for group in saved_groups]}, the optimizer of "
            f"{[len(group['params']) for group in groups]}: build the optimizer with the parameters it was saved with"
        )
    for number, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        options = {key: value for key, value in saved.items() if key != "params"}
        check_group({**group, **GROUP_COUNTERS, **options})
        # Without these, rank codes mean nothing. The options of AdamW may be missing, as it allows.
        missing = [option for option in OPTIONS_OF_MASKS if option not in saved]
        for param, index in zip(group["params"], saved["params"], strict=True):
            state = states.get(index, {})
            if missing and "rank_code" in state:
                raise ValueError(f"state_dict: group {number} has rank codes but no {missing[0]!r}: it is damaged")
            _check_state(index, state, param, saved)


class _Indices(list[Any]):
    """Indices of parameters; torch's loader asks for each tensor of each parameter whether it is among them."""

    def __init__(self, indices: list[Any]) -> None:
        super().__init__(indices)
        self._known = set(indices)

    def __contains__(self, index: object) -> bool:
        return index in self._known


def with_fast_indices(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The same ``state_dict``; loading it does not take the square of the number of parameters."""
    groups = [{**group, "params": _Indices(group["params"])} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def _checked_parts(state_dict: dict[str, Any]) -> tuple[dict[Any, dict[str, Any]], list[dict[str, Any]]]:
    """The states by index and the groups, if they are such."""
    for key, kind in (("state", dict), ("param_groups", list)):
        if key not in state_dict:
            raise ValueError(f"state_dict has no {key!r}, only {list(state_dict)}: pass what state_dict() returned")
        _require_kind(f"its {key!r}", state_dict[key], kind)
    for index, state in state_dict["state"].items():
        _require_kind(f"the state of parameter {index!r}", state, dict)
    indices = []
    for number, group in enumerate(state_dict["param_groups"]):
        _require_kind(f"group {number} of its 'param_groups'", group, dict)
        if "params" not in group:
            raise ValueError(f"state_dict: group {number} of its 'param_groups' has no 'params'")
        _require_kind(f"'params' of group {number}", group["params"], list)
        indices += group["params"]
    for index, times in Counter(indices).items():
        if times > 1:
            raise ValueError(f"state_dict: 'params' of its groups name parameter {index!r} twice: it is damaged")
    return state_dict["state"], state_dict["param_groups"]


def _require_kind(what: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"state_dict: {what} is of type {type(value).__name__}, not {kind.__name__}: it is damaged")


def _check_state(index: int, state: dict[str, Any], param: Tensor, saved_group: dict[str, Any]) -> None:
    """Raise ValueError for a state that cannot be the parameter's."""
    if not state:
        return
    for key, described in STATE_TENSORS.items():
        if not described.per_element or not _is_expected(described, state, saved_group):
            continue
        value = state.get(key)
        if not isinstance(value, Tensor):
            raise ValueError(f"state_dict: parameter {index} lacks {key}, or it is not a tensor")
        if is_lazy(param):  # its shape is not known yet: the first step looks at it
            continue
        if value.shape != param.shape:
            raise ValueError(
                f"state_dict: {key} of parameter {index} has shape {tuple(value.shape)}, the parameter has "
                f"{tuple(param.shape)}: it was saved for another model"
            )
        if sharding_of(value) != sharding_of(param):
            raise ValueError(
                f"state_dict: {key} of parameter {index} is spread over processes as {sharding_of(value)}, the "
                f"parameter as {sharding_of(param)} (None: not at all): load it with "
                "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
            )
        _check_values(key, index, value)
    _check_step(index, state.get("step"))


def _is_expected(described: TensorField, state: dict[str, Any], saved_group: dict[str, Any]) -> bool:
    """Whether a checkpoint must have a tensor.

    Of what the same option asks for, some without the rest is damaged; none at all is a checkpoint of plain AdamW.
    """
    if described.replaceable:
        return any(key in state for key, other in STATE_TENSORS.items() if other.needs == described.needs)
    return described.needs is None or bool(saved_group.get(described.needs))


def _check_step(index: int, step: object) -> None:
    """A step count is a number, as AdamW of old saved it, or a tensor of one; draws count to 2**32."""
    real = isinstance(step, Tensor) and step.numel() == 1 and not step.is_complex()
    count = float(step) if real or isinstance(step, (int, float)) else math.nan  # type: ignore[arg-type]
    if not (0 <= count < 2**32 and count.is_integer()):
        raise ValueError(f"state_dict: step of parameter {index} is {step!r}, not a number of steps: it is damaged")


def _check_values(key: str, index: int, value: Tensor) -> None:
    """Raise ValueError for dtypes and numbers that no optimizer has saved: kernels look some of them up in tables."""
    kind = STATE_TENSORS[key].dtype
    if kind in (DtypeOf.PARAMETER, DtypeOf.MOMENT):
        right, is_right = "a floating-point dtype", value.is_floating_point()
    else:
        dtypes = SCORE_DTYPES if kind is DtypeOf.SCORE else (kind.resolved(value.dtype, value.dtype),)
        right, is_right = " or ".join(map(str, dtypes)), value.dtype in dtypes
    if not is_right:
        raise ValueError(f"state_dict: {key} of parameter {index} is {value.dtype}, not {right}: it is damaged")
    if value.layout != torch.strided:
        raise ValueError(f"state_dict: {key} of parameter {index} is {value.layout}, not {torch.strided}")
    if STATE_TENSORS[key].is_ranked and (own := local(value)).numel():
        smallest, largest = own.aminmax()  # NaN if there is one
        if not (smallest >= 0 and largest <= torch.finfo(torch.float32).max):
            raise ValueError(
                f"state_dict: {key} of parameter {index} lies between {float(smallest)} and {float(largest)}, not "
                "between 0 and the largest float32: it is damaged"
            )


def reattach(
    groups: list[dict[str, Any]],
    states: Mapping[Tensor, State],
    defaults: dict[str, Any],
    options: RoastOptions,
    state_dict: dict[str, Any],
    previous: list[dict[str, Any]],
) -> None:
    """Undo the casts of ``torch.optim.Optimizer.load_state_dict``, and complete what plain AdamW does not save.

    The base class casts every state tensor of a floating-point parameter to the parameter's dtype: rank codes and
    float32 importance of a bfloat16 parameter too. ``previous`` are the groups before loading: they have the options
    that AdamW lacks.
    """
    lacking: list[str] = []
    for group, saved, own in zip(groups, state_dict["param_groups"], previous, strict=True):
        for key, default in {**defaults, **GROUP_COUNTERS}.items():
            if key != "differentiable":  # no option of ours; the base class adds it to the defaults when it loads
                group.setdefault(key, default if key in GROUP_COUNTERS else own.get(key, default))
        for key in NOT_SUPPORTED:  # of AdamW, without an effect here
            group.pop(key, None)
        for param, index in zip(group["params"], saved["params"], strict=True):
            state = states.get(param)
            if not state:
                continue
            _undo_casts(state, state_dict["state"][index], param, capturable=group["capturable"])
            lacking += [name for name in state_names(group) if name not in state and name not in lacking]
            if not is_lazy(param):  # otherwise before its first step
                make_state(state, group, param, options, index)
    if "rank_code" in lacking:
        warn(
            "the state_dict was saved by an optimizer without selection (AdamW): its moments are taken, importance "
            "starts at zero and everything is updated until the next refresh"
        )
    if others := [name for name in lacking if STATE_TENSORS[name].needs != "selective"]:
        warn(f"the state_dict has no {' and no '.join(others)}: training goes on as if it began with this parameter")


def _undo_casts(state: State, saved: State, param: Tensor, *, capturable: bool) -> None:
    for key, value in saved.items():
        if key == "step":
            step = torch.as_tensor(state["step"], dtype=torch.float32).reshape(())
            # It comes from elsewhere after AdamW(fused=True) or map_location, and each step would wait for the device.
            state["step"] = step.to(param.device if capturable else "cpu")
        elif isinstance(value, Tensor):
            # An expanded tensor has one element for many, which a step could not write to.
            shared = 0 in value.stride() and value.numel() > 1
            state[key] = (value.contiguous() if shared else value).to(device=param.device)
