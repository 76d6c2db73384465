"""Lists of tensors on their way to the library: checks, addresses, and what goes to the reference instead."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # Dtype in kernels.h

_UNSUITABLE = b"unsuitable tensors"  # UNSUITABLE in checks.h
_OUT_OF_MEMORY = b"out of memory"

_Plan = TypeVar("_Plan")


def parts(plan: Callable[..., _Plan | None], lists: list[list[Any]]) -> Iterator[tuple[_Plan | None, list[list[Any]]]]:
    """Parts of parallel lists whose tensors are treated alike, each with its plan; None: by the reference.

    Usually that is everything at once. Else each entry is planned, and those with equal dtypes stay together.

    Args:
        plan: called with lists of equal length.
        lists: of equal length.
    """
    if not lists[0]:
        return
    whole = plan(*lists)
    if whole is not None:
        yield whole, lists
        return
    alike: dict[Any, list[int]] = {}
    for i in range(len(lists[0])):
        entry = [entries[i : i + 1] for entries in lists]
        dtypes = tuple(entries[0].dtype for entries in entry)
        alike.setdefault(None if plan(*entry) is None else dtypes, []).append(i)
    for dtypes, indices in alike.items():
        part = [[entries[i] for i in indices] for entries in lists]
        yield (None if dtypes is None else plan(*part)), part


def sizes_and_addresses(*lists: tuple[list[Tensor], torch.dtype]) -> list[array[int]] | None:
    """Sizes of the tensors of the first list and addresses of those of every list; None as for :func:`addresses`."""
    numel = sizes(lists[0][0])
    result = [numel]
    for tensors, dtype in lists:
        found = addresses(tensors, dtype, numel)
        if found is None:
            return None
        result.append(found)
    return result


def sizes(tensors: list[Tensor]) -> array[int]:
    """Number of elements of each tensor."""
    return array("q", [tensor.numel() for tensor in tensors])


def addresses(tensors: list[Tensor], dtype: torch.dtype, numel: Sequence[int]) -> array[int] | None:
    """Address of each tensor; None unless all are on the CPU, contiguous, of that dtype and of these sizes.

    An empty list has no addresses. One loop without calls: with a thousand small tensors this is what a step costs.
    """
    found = [
        tensor.data_ptr()
        for tensor, size in zip(tensors, numel, strict=False)
        if tensor.dtype is dtype and tensor.is_cpu and tensor.is_contiguous() and tensor.numel() == size
    ]
    return array("q", found) if len(found) == len(tensors) else None


def pointer(numbers: array[int]) -> int | None:
    """Address of the numbers, which must be kept as long as it is used; None if there are none."""
    return numbers.buffer_info()[0] if numbers else None


def succeeded(message: bytes | None) -> bool:
    """Whether the library did what it was called for; False: the reference must, nothing was changed.

    Args:
        message: what the library returned; None when it was done.

    Raises:
        ValueError: an argument that no backend can take.
        MemoryError: no memory for a list of the tensors.
    """
    if message is None or message == _UNSUITABLE:
        return message is None
    raise (MemoryError if message == _OUT_OF_MEMORY else ValueError)(f"native backend: {message.decode()}")
