"""The scale with which gradients are taken that are held until the objective is backpropagated."""

from __future__ import annotations

import pytest
import torch

from roast_optim.task_gradient import LossScale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_scale_is_halved_after_an_overflow_down_to_one(dtype: torch.dtype) -> None:
    scale, loss = LossScale(), torch.zeros((), dtype=dtype)
    seen = []
    for value in (1.0, torch.inf, torch.nan, 2.0, *12 * [torch.inf]):
        scale.lower_after_overflow([torch.zeros(3), None, torch.tensor([1.0, value])])
        assert scale.like(loss).dtype == dtype
        seen.append(float(scale.like(loss)))
    assert seen[:5] == [4096, 2048, 1024, 1024, 512]
    assert seen[-2:] == [1, 1]
