"""How the kernels are cut into blocks and programs, where they are launched, and what a CUDA graph asks of a launch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from operator import is_

import torch
from torch import Tensor

from ..capture import capturing

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


class DeviceTables:
    """Tables on the device that do not change from step to step; one of each per stream, which no other may read.

    They belong to a plan and are gone with it. While a CUDA graph is captured they are made anew, in the memory of that
    graph, whose replays read them. What a capture keeps: the addresses, pinned and copied, 8 bytes for each column of
    each tensor and 4 for each program, twice; and the tables of the selection, 5 KB.

    Args:
        held_for_graphs: takes what captured graphs read, and must live as long as they do; None: no graph may hold it.
    """

    def __init__(self, held_for_graphs: list[Tensor] | None = None) -> None:
        self._held_for_graphs = held_for_graphs
        self._tables: dict[tuple[str, int], tuple[tuple[Tensor, ...], Tensor]] = {}

    def get(
        self, name: str, device: torch.device, make: Callable[[], Tensor], made_of: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """The table of that name for the current stream; made where there is none yet, or of other tensors."""
        if capturing():
            table = make()
            self._hold(table, *made_of)  # the replays make it again, of the same tensors
            return table
        key = (name, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)
        known = self._tables.get(key)
        if known is None or len(known[0]) != len(made_of) or not all(map(is_, known[0], made_of)):
            known = self._tables[key] = (made_of, make())
        return known[1]

    def keep(self, scalar: Tensor) -> None:
        """Hold a tensor that the launch reads, of which the caller may let go, for the replays of a captured graph."""
        if capturing():
            self._hold(scalar)

    def upload(self, table: Tensor, device: torch.device) -> Tensor:
        """A copy on the device; the host does not wait for it."""
        if device.type == "cpu":
            return table.clone()
        pinned = table.pin_memory()
        copied = pinned.to(device, non_blocking=True)
        if capturing():
            self._hold(pinned, copied)
        return copied

    def _hold(self, *tables: Tensor) -> None:
        if self._held_for_graphs is None:
            raise RuntimeError("a CUDA graph cannot hold this: its tables would be freed before a replay reads them")
        self._held_for_graphs.extend(tables)
