"""What DistributedDataParallel, FSDP and torch.compile put around a model, and how several passes go through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def layers(model: nn.Module) -> Iterator[nn.Module]:
    """The wrappers around a model, from the outermost, and the model at last."""
    yield model
    while True:
        if isinstance(model, DistributedDataParallel) or _is_flattened(model):
            model = model.get_submodule("module")
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return
        yield model


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, FullyShardedDataParallel and torch.compile's wrapper."""
    *_, innermost = layers(model)
    return innermost


def is_fully_sharded(module: nn.Module) -> bool:
    """Is it wrapped by FullyShardedDataParallel, or has fully_shard been applied to it?"""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule) or _is_flattened(module)


def _is_flattened(module: nn.Module) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return isinstance(module, FullyShardedDataParallel)


def is_compiled(module: nn.Module) -> bool:
    """Is it torch.compile's wrapper, or has ``module.compile()`` been called?"""
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


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
