"""Run a function in several processes that share a gloo process group on this machine."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def run_in_processes(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(*args)`` returns in each of ``world_size`` processes; an exception is returned as its text.

    ``function`` must be importable; it may use ``torch.distributed`` freely.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_enter, (world_size, folder, function, args), nprocs=world_size)
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world_size)]


def _enter(rank: int, world_size: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        result = function(*args)
        dist.barrier()  # nobody tears the group down while another process still talks in it
    except Exception:
        result = traceback.format_exc()
    torch.save(result, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()
