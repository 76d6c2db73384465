"""What kernels rely on of tensors - address, dtype, device, size, contiguity - read quickly, for it is at every step.

Four questions to each tensor in Python take 0.2 microseconds. Where the native library is there and torch offers the
table of functions of DLPack (from 2.10 on), one call reads all tensors of a list in a quarter of that.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

_FACTS = 4  # numbers in TensorFacts of native/facts.h


class Facts(NamedTuple):
    """Facts of several tensors: four numbers of each, one after the other. Equal facts: the same memory, used alike.

    Attributes:
        negative: whether each tensor is read with the other sign (torch's negative bit), which no kernel knows of.
    """

    numbers: Sequence[Any]
    negative: Sequence[bool]

    @property
    def addresses(self) -> Sequence[int]:
        """Of the first element of each tensor."""
        return self.numbers[0::_FACTS]

    @property
    def kinds(self) -> Sequence[object]:
        """What stands for the dtype and the device of each tensor."""
        return self.numbers[1::_FACTS]

    @property
    def sizes(self) -> Sequence[int]:
        """Numbers of elements."""
        return self.numbers[2::_FACTS]

    @property
    def contiguous(self) -> Sequence[int]:
        """Whether each tensor is."""
        return self.numbers[3::_FACTS]


class TensorsWithFacts(list[Tensor]):
    """Tensors of which the facts were read already; for a moment in which nobody changes them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__(tensors)
        self.facts = facts(tensors)


def facts(tensors: Sequence[Tensor]) -> Facts:
    """The facts of tensors that have memory."""
    if isinstance(tensors, TensorsWithFacts):
        return tensors.facts
    read, negative = _reader(), list(map(Tensor.is_neg, tensors))
    if read is not None:
        numbers = array("q", bytes(8 * _FACTS * len(tensors)))
        try:
            if read(tensors if type(tensors) is list else list(tensors), len(tensors), numbers.buffer_info()[0]) == 0:
                return Facts(numbers, negative)
        except RuntimeError:  # of a tensor that DLPack cannot express
            pass
    asked = ((t.data_ptr(), (t.dtype, t.device), t.numel(), t.is_contiguous()) for t in tensors)
    return Facts(list(chain.from_iterable(asked)), negative)


@cache
def _reader() -> ctypes._CFuncPtr | None:  # type: ignore[name-defined]
    """The library's function that reads facts, given torch's table; None where one of them is missing."""
    from .native.library import facts_function  # which needs step.py, as plans do

    capsule = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    return None if capsule is None else facts_function(capsule)
