"""The buffers of a model, such as the running statistics of batch normalisation, before and after a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Larger ones, such as quantised weights, are copied only once a pass has changed them.
_LARGE = 2**20


@dataclass(frozen=True)
class BufferValues:
    """What the buffers held.

    Attributes:
        tensors: the tensors that were the buffers, in the order of their places; None where there was none.
        versions: how often each had been changed in place.
        copies: of their values; of a large one None, unless it was asked for.
    """

    tensors: list[Tensor | None]
    versions: list[int]
    copies: list[Tensor | None]


class ModelBuffers:
    """Takes and gives back the values of all buffers of a model. The host waits for nothing."""

    def __init__(self, model: nn.Module) -> None:
        self._places = [(module._buffers, name) for module in model.modules() for name in module._buffers]

    def values(self, before: BufferValues | None = None) -> BufferValues:
        """What they hold now; with a copy of the large ones that have changed since ``before``."""
        tensors = [buffers.get(name) for buffers, name in self._places]
        versions = [0 if tensor is None else tensor._version for tensor in tensors]
        copied = [
            index
            for index, tensor in enumerate(tensors)
            if tensor is not None
            and not tensor.is_meta
            and tensor.layout == torch.strided
            and (tensor.numel() <= _LARGE or _has_changed(before, index, tensor))
        ]
        copies: list[Tensor | None] = [None] * len(tensors)
        # Detached, rather than within no_grad, which Ctrl-C at its end would leave switched on.
        originals = [tensors[index].detach() for index in copied]  # type: ignore[union-attr]
        taken = [torch.empty_like(original) for original in originals]
        if taken:
            torch._foreach_copy_(taken, originals)
        for index, copy in zip(copied, taken, strict=True):
            copies[index] = copy
        return BufferValues(tensors, versions, copies)

    def go_back_to(self, begun: BufferValues) -> None:
        """Give those buffers that are still the same tensors the values that they had.

        One that was replaced, as a cache that has grown, stays: the module may have noted its size elsewhere.
        """
        self._write(
            [
                (now, copy)
                for (buffers, name), then, copy in zip(self._places, begun.tensors, begun.copies, strict=True)
                if (now := buffers.get(name)) is then and now is not None and copy is not None
            ]
        )

    def end_as(self, ended: BufferValues) -> None:
        """Make the buffers the tensors that they were, with the values that they had."""
        written = []
        for (buffers, name), tensor, copy in zip(self._places, ended.tensors, ended.copies, strict=True):
            if buffers.get(name) is not tensor:
                buffers[name] = tensor
            if tensor is not None and copy is not None:
                written.append((tensor, copy))
        self._write(written)

    @staticmethod
    def _write(pairs: list[tuple[Tensor, Tensor]]) -> None:
        pairs = [(tensor, copy) for tensor, copy in pairs if tensor.shape == copy.shape]
        if pairs:
            # Through .data, so that graphs that hold a buffer, most of which have not changed, stay valid.
            torch._foreach_copy_([tensor.data for tensor, _ in pairs], [copy for _, copy in pairs])


def _has_changed(before: BufferValues | None, index: int, tensor: Tensor) -> bool:
    return before is not None and (before.tensors[index] is not tensor or before.versions[index] != tensor._version)
