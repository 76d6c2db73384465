"""What a step costs the host beside its launch: CPU time of a thread, the launch stubbed; and of many tiny tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch

from roast_optim import RoastAdamW
from roast_optim.kernels import native, triton
from roast_optim.kernels.native.library import loaded

from .conftest import Row
from .contestants import RECIPE, cannot_run, ranked_optimizer, torch_adamw
from .pairs import Benchmark, Contestant, against
from .workloads import Shapes, make_parameters

CPU = torch.device("cpu")
TENSORS = 400
CALLS = 20  # steps per turn


class _NoLaunch:
    """In the place of a Triton kernel."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@contextmanager
def native_without_work() -> Iterator[None]:
    """The library is not called for a step; everything before and after is done."""
    library = loaded()

    class Library:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def roast_adamw(self, step: object) -> None:
            return None

    with mock.patch.object(native, "loaded", return_value=Library()):
        yield


@contextmanager
def triton_without_gpu() -> Iterator[None]:
    """Steps on tensors of the CPU, up to the launch; neither pinned memory nor a copy to the device is part of it."""
    from roast_optim.kernels.triton import importance, roast_adamw

    with (
        mock.patch.object(triton, "supports", return_value=True),
        mock.patch.object(triton, "unavailable", return_value=None),
        mock.patch.object(roast_adamw, "roast_adamw_kernel", _NoLaunch()),
        mock.patch.object(importance, "_accumulate_kernel", _NoLaunch()),
    ):
        yield


@contextmanager
def fused_without_work() -> Iterator[None]:
    """Neither the fused kernel of torch's AdamW nor its counting of steps, one launch each on a GPU."""
    nothing = mock.Mock(return_value=None)
    with mock.patch.object(torch, "_fused_adamw_", nothing), mock.patch.object(torch, "_foreach_add_", nothing):
        yield


STUBS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "native": native_without_work,
    "triton": triton_without_gpu,
}


on_the_host = pytest.mark.parametrize("device", ["cpu"], indirect=True)


@on_the_host
@pytest.mark.parametrize("backend", STUBS)
def test_host_time_of_a_step(row: Row, benchmark: Benchmark, tiny: bool, backend: str) -> None:
    reason = None if backend == "triton" else cannot_run(backend, CPU)
    row(f"host time of a step, {TENSORS} tensors", f"{backend}, launch stubbed", reason)
    shapes: Shapes = [(4, 4)] * (8 if tiny else TENSORS)
    fused = torch_adamw("fused", shapes, CPU)
    with STUBS[backend]():
        own = {**RECIPE, "selective": True, "refresh_every": None}
        optimizer = RoastAdamW(make_parameters(shapes, CPU), **own, backend=backend)
        optimizer.step()
        for group in optimizer.param_groups:
            group["refreshes"] = 1  # a stubbed launch accumulates nothing that could be ranked
        measure(benchmark, optimizer.step, Contestant(fused.name, fused.run), rounds=3 if tiny else 41)


@on_the_host
def test_many_tiny_tensors_take_no_longer_than_fused(row: Row, benchmark: Benchmark, tiny: bool) -> None:
    """The whole step in one thread; a thread's CPU time, as neighbours disturb the clock."""
    row("CPU time of a step, 1,000 tiny tensors", "native", cannot_run("native", CPU))
    shapes: Shapes = [(128,)] * (10 if tiny else 1000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        optimizer, fused = ranked_optimizer("native", shapes, CPU), torch_adamw("fused", shapes, CPU)
        measure(benchmark, optimizer.step, fused, rounds=3 if tiny else 41, stub_fused=False)
    finally:
        torch.set_num_threads(threads)


def measure(
    benchmark: Benchmark, step: Callable[[], object], fused: Contestant, *, rounds: int, stub_fused: bool = True
) -> None:
    """Turn by turn, the CPU time of this thread; notes the medians and the ratio to torch's fused AdamW."""
    own, others = [], []
    for turn in range(rounds + 1):
        mine = cpu_time(step)
        if stub_fused:
            with fused_without_work():
                other = cpu_time(fused.run)
        else:
            other = cpu_time(fused.run)
        if turn > 0:  # the first makes state and plans
            own.append(mine)
            others.append(other)
    benchmark.pedantic(lambda: None)
    benchmark.extra_info["seconds"] = sorted(own)[len(own) // 2]
    benchmark.extra_info["rounds"] = rounds
    benchmark.extra_info["opponents"] = {fused.name: against(own, others)}


def cpu_time(run: Callable[[], object]) -> float:
    """Seconds of one call, of this thread's CPU time."""
    started = time.thread_time_ns()
    for _ in range(CALLS):
        run()
    return (time.thread_time_ns() - started) / CALLS / 1e9
