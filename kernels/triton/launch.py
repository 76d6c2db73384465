"""How the kernels are cut into blocks and programs, where they are launched, and what a CUDA graph asks of a launch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, wraps
from typing import ParamSpec

import torch
from torch import Tensor

_Parameters = ParamSpec("_Parameters")

# Four elements per thread make one 128-bit access of float32 and one Philox block.
ELEMENTS_PER_THREAD = 4
WARPS = 4
BLOCKS_PER_PROGRAM = 8

# Fused multiply-add only where a kernel says so: importance is defined by two roundings.
OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": False}

_INTERPRETED_BLOCK = 16384  # the interpreter takes about as long for a block of any size


@lru_cache
def block_size(device: torch.device) -> int:
    """Elements that the threads of one program handle at once."""
    if device.type == "cpu":
        return _INTERPRETED_BLOCK
    return ELEMENTS_PER_THREAD * torch.cuda.get_device_properties(device).warp_size * WARPS


def on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device; make it ``device``."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def capturing() -> bool:
    """Whether a CUDA graph is being captured on the current stream."""
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()


def cached_outside_graphs(make: Callable[_Parameters, Tensor]) -> Callable[_Parameters, Tensor]:
    """Remember what ``make`` returns, unless a graph is being captured: then it lies in memory of that graph."""
    cached = lru_cache(maxsize=64)(make)

    @wraps(make)
    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> Tensor:
        return make(*args, **kwargs) if capturing() else cached(*args, **kwargs)  # type: ignore[arg-type]

    return call
