"""Tensors cut into chunks, so that temporaries do not grow with the parameter."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

CHUNK = 1 << 18  # elements; a multiple of four, so that chunks of a whole parameter begin with a fresh Philox block


def chunks(tensors: list[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
    """Views of equal shape on at most :data:`CHUNK` elements, in row-major order, each with its first element's index.

    The tensors need neither be contiguous nor have equal strides.
    """
    if tensors[0].numel() == 0:
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors = [tensor.view(-1) for tensor in tensors]
    yield from _chunks(tensors, 0)


def _chunks(tensors: list[Tensor], first: int) -> Iterator[tuple[int, list[Tensor]]]:
    numel = tensors[0].numel()
    if numel <= CHUNK:
        yield first, tensors
        return
    row = numel // tensors[0].shape[0]
    if row > CHUNK:
        for i in range(tensors[0].shape[0]):
            yield from _chunks([tensor[i] for tensor in tensors], first + i * row)
    else:
        rows = CHUNK // row
        for i in range(0, tensors[0].shape[0], rows):
            yield first + i * row, [tensor[i : i + rows] for tensor in tensors]
