"""Several passes of a model as one forward pass of DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def call_as_one_forward_pass(
    wrapper: DistributedDataParallel, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call the wrapper with ``function`` in the place of its module, and return what that returns.

    A forward pass of the wrapper prepares one backward pass: it looks for parameters that the output does not depend on
    and counts how often the others are used. It must therefore see the output of all passes together, and no gradient
    may be taken on the way through the wrapper itself.
    """
    module = wrapper.module
    wrapper.module = _StandIn(module, function)
    try:
        return wrapper(*args, **kwargs)
    finally:
        wrapper.module = module


class _StandIn(nn.Module):
    """A function that has the buffers of a module, which the wrapper broadcasts."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function
        self._named_buffers = module.named_buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        return self._named_buffers(*args, **kwargs)
