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
OPTIONS: dict[str, int | bool] = {"num_warps": WARPS, "enable_fp_fusion": False}

_INTERPRETED_BLOCK = 16384  # the interpreter takes about as long for a block of any size


@lru_cache
def lanes(device: torch.device) -> int:
    """Threads of a warp: 32 on NVIDIA's GPUs, 64 on some of AMD's."""
    return 32 if device.type == "cpu" else int(torch.cuda.get_device_properties(device).warp_size)


def block_size(device: torch.device) -> int:
    """Elements that the threads of one program handle at once."""
    return _INTERPRETED_BLOCK if device.type == "cpu" else ELEMENTS_PER_THREAD * lanes(device) * WARPS


def row_options(block: int, lanes_per_warp: int) -> dict[str, int | bool]:
    """Options of a kernel that handles ``block`` elements of a row at once: as many warps as have eight per thread."""
    return {**OPTIONS, "num_warps": max(1, min(16, block // (8 * lanes_per_warp)))}


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
