"""How the kernels are cut into blocks and programs, and on which device they are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch

# Four elements per thread make one 128-bit access of float32 and one Philox block.
ELEMENTS_PER_THREAD = 4
WARPS = 4
BLOCKS_PER_PROGRAM = 8

# Fused multiply-add only where a kernel says so: importance is defined by two roundings.
OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": False}


@lru_cache
def block_size(device: torch.device) -> int:
    """Elements that the threads of one program handle at once."""
    lanes = torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32
    return ELEMENTS_PER_THREAD * lanes * WARPS


def on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device; make it ``device``."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
