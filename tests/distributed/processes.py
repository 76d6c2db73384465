"""Run a function in several processes that share a gloo process group on this machine."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

# A fork server imports these once; each process of each test is then a fork of it, fresh and ready in milliseconds.
_IMPORTED_ONCE = (
    "pytest",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "transformers.models.bert.modeling_bert",
    "transformers.trainer",
    "roast_optim",
)
_LONGEST_WAIT = timedelta(seconds=60)  # for another process, before it counts as a hang


def run_in_processes(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(*args)`` returns in each of ``world_size`` processes.

    ``function`` must be importable; it may use ``torch.distributed`` freely.

    Raises:
        AssertionError: it raised in one of them; the message is all their tracebacks.
    """
    results = outcomes_in_processes(world_size, function, *args)
    errors = [str(result) for result in results if isinstance(result, Failure)]
    assert not errors, "\n".join(errors)
    return results


class Failure(str):
    """The traceback of a function that raised."""


def outcomes_in_processes(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """As :func:`run_in_processes`, but a process in which ``function`` raises gives a :class:`Failure`."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(_IMPORTED_ONCE))
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_enter, (world_size, folder, function, args), nprocs=world_size, start_method="forkserver")
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world_size)]


def _enter(rank: int, world_size: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    # What torchrun sets; libraries that start processes read it from there.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=_LONGEST_WAIT)
    result: Any
    try:
        result = function(*args)
        dist.barrier()  # nobody tears the group down while another process still talks in it
    except BaseException:  # CheckpointException is not an Exception
        result = Failure(traceback.format_exc())
    torch.save(result, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()
