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


def assert_equal(left: Snapshot, right: Snapshot) -> None:
    """Both are equal, dtypes included, bit for bit."""
    assert len(left) == len(right)
    for (left_options, left_parameters), (right_options, right_parameters) in zip(left, right, strict=True):
        assert left_options == right_options, f"{left_options} != {right_options}"
        for (left_value, left_state), (right_value, right_state) in zip(left_parameters, right_parameters, strict=True):
            assert_same_bits(left_value, right_value)
            assert left_state.keys() == right_state.keys()
            for key, value in left_state.items():
                assert_same_bits(value, right_state[key])


def assert_same_bits(left: Tensor, right: Tensor) -> None:
    """The same dtype, shape and bits; NaN equals NaN."""
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    difference = left.contiguous().view(integer) != right.contiguous().view(integer)
    assert not difference.any(), f"{int(difference.sum())} of {difference.numel()} elements differ"
