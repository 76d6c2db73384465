"""Gradients multiplied as a step reads them, so that clipping and unscaling take no pass of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def multiplied(grad: Tensor, factor: float | Tensor) -> Tensor:
    """G <- fl(c g): the product in float32 at least, then rounded to the dtype of ``grad``; what overflows is infinite.

    So a step with a factor is the step with gradients that were multiplied before, bit for bit.
    """
    working = torch.promote_types(grad.dtype, torch.float32)
    return (grad.to(working) * torch.as_tensor(factor, dtype=working, device=grad.device)).to(grad.dtype)


def all_multiplied(grads: Sequence[Tensor], factor: float | Tensor) -> list[Tensor]:
    """The gradients as they are where the factor is the number 1, else copies; see :func:`multiplied`."""
    takes_them = not isinstance(factor, Tensor) and factor == 1
    return list(grads) if takes_them else [multiplied(grad, factor) for grad in grads]
