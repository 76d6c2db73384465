"""The whole state of an optimizer and its parameters, to be compared bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# torch adds "differentiable" to the options of every optimizer that it loads or unpickles.
_NOT_OURS = ("params", "differentiable")

Snapshot = list[tuple[dict[str, Any], list[tuple[Tensor, dict[str, Any]]]]]


def snapshot(optimizer: Optimizer) -> Snapshot:
    """Copies of every group's options and of every parameter with its state."""
    return [
        (
            {key: copy.deepcopy(value) for key, value in group.items() if key not in _NOT_OURS},
            [(p.detach().clone(), copy.deepcopy(optimizer.state.get(p, {}))) for p in group["params"]],
        )
        for group in optimizer.param_groups
    ]


def assert_same_snapshots(left: Snapshot, right: Snapshot) -> None:
    """Both are equal, dtypes included, bit for bit; says which group, parameter and key differ, and where first."""
    assert len(left) == len(right), f"{len(left)} and {len(right)} groups"
    for group, ((left_options, left_parameters), (right_options, right_parameters)) in enumerate(
        zip(left, right, strict=True)
    ):
        assert left_options == right_options, f"group {group}: {left_options} != {right_options}"
        assert len(left_parameters) == len(right_parameters), f"group {group}"
        for i, (left_parameter, right_parameter) in enumerate(zip(left_parameters, right_parameters, strict=True)):
            (left_value, left_state), (right_value, right_state) = left_parameter, right_parameter
            where = f"parameter {i} of group {group}"
            assert_same_bits(left_value, right_value, where)
            assert left_state.keys() == right_state.keys(), where
            for key, value in left_state.items():
                assert_same_bits(value, right_state[key], f"{key} of {where}")


def assert_same_bits(left: Tensor, right: Tensor, what: str = "the tensor") -> None:
    """The same dtype, shape and bits; NaN equals NaN. ``what`` they are is said where they differ."""
    assert left.dtype == right.dtype, f"{what}: {left.dtype} and {right.dtype}"
    assert left.shape == right.shape, f"{what}: shapes {tuple(left.shape)} and {tuple(right.shape)}"
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    differing = left.contiguous().view(integer) != right.contiguous().view(integer)
    if differing.any():
        first = tuple(differing.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(differing.sum())} of {differing.numel()} elements differ, first {list(first)}: "
            f"{left[first].item()!r} and {right[first].item()!r}"
        )
