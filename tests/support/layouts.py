"""Ways in which a parameter can lie in memory. Each function returns equal values that lie otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Layout = Callable[[Tensor], Tensor]


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


def transposed(tensor: Tensor) -> Tensor:
    return tensor.clone().T.contiguous().T if tensor.dim() == 2 else tensor


def with_gaps(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def unaligned(tensor: Tensor) -> Tensor:
    return torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])[1:].view(tensor.shape)


def every_second_row(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], 1).flatten(0, 1)[::2]


def part_of_wider_rows(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]


LAYOUTS: dict[str, Layout] = {
    "contiguous": unchanged,
    "transposed": transposed,
    "every second element": with_gaps,
    "every second row": every_second_row,
    "part of wider rows": part_of_wider_rows,
    "unaligned": unaligned,
    "expanded gradient": unchanged,  # a layout of the gradient alone
}
