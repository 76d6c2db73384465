"""GPU time, host time and wall time of several contestants, measured in turn: A B A B ..."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.kernels.pairs import Contestant, against, copy_like, prepare, run, synchronize

from .report import Figure, Report

ROUNDS = 20
ROUNDS_IN_DRY_RUN = 1
LARGEST_COPY = 1 << 32  # bytes read and written: enough for the rate, and little beside a model of a billion parameters
_FILLER_BYTES = 1 << 28  # several times the cache of any GPU


@dataclass
class Times:
    """Seconds per call, one entry per round.

    Attributes:
        gpu: between two events around the call, which the GPU reaches when the host is long ahead.
        host: until the call returned, without waiting for the GPU.
        wall: until the GPU was done, begun with an idle GPU.
    """

    gpu: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


class _Filler:
    """Copies that keep the GPU busy while the host prepares a call, and clear the cache of what the last one left.

    Without them the interval between two events would contain the time in which the GPU waits for the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._source = torch.ones(_FILLER_BYTES, dtype=torch.uint8, device=device)
        self._target = torch.zeros_like(self._source)
        self._seconds = 1e-4
        for _ in range(2):  # the first time includes what is loaded at first use
            begin, end = _event(), _event()
            begin.record()
            self.enqueue(5e-4)
            end.record()
            synchronize(device)
        self._seconds = begin.elapsed_time(end) / 1e3 / self._copies(5e-4)

    def _copies(self, seconds: float) -> int:
        return math.ceil(seconds / self._seconds) + 1

    def enqueue(self, seconds: float) -> None:
        """Keep the GPU busy for at least so long."""
        for _ in range(self._copies(seconds)):
            self._target.copy_(self._source)


def in_turn(
    contestants: Sequence[Contestant], report: Report, *, rounds: int = ROUNDS, host_waits: bool = False
) -> dict[str, Times]:
    """Time each contestant once per round, after three runs that warm it up; under each one's name.

    Args:
        contestants: with different names.
        report: knows the device.
        rounds: how often; once in a dry run.
        host_waits: whether a call waits for the GPU itself. The GPU then idles within the call, and all times are
            those of a call that begins with an idle GPU.
    """
    device = report.device
    filler = None if report.dry_run or host_waits else _Filler(device)
    times = {contestant.name: Times() for contestant in contestants}
    host = {}
    for contestant in contestants:
        for _ in range(1 if report.dry_run else 3):  # compiles, makes tables, and then says how long the host takes
            prepare(contestant, device)
            began = time.perf_counter()
            contestant.run()
            host[contestant.name] = time.perf_counter() - began
            synchronize(device)
    for _ in range(ROUNDS_IN_DRY_RUN if report.dry_run else rounds):
        for contestant in contestants:
            _once(contestant, times[contestant.name], device, filler, host[contestant.name])
    return times


def _once(
    contestant: Contestant, times: Times, device: torch.device, filler: _Filler | None, usual_host: float
) -> None:
    calls = contestant.calls
    prepare(contestant, device)
    began = time.perf_counter()
    run(contestant, device)
    times.wall.append((time.perf_counter() - began) / calls)
    prepare(contestant, device)
    synchronize(device)
    if device.type == "cpu":
        times.host.append(times.wall[-1])
        times.gpu.append(times.wall[-1])
        return
    begin, end = _event(), _event()
    if filler is not None:
        filler.enqueue(2 * usual_host)
    begin.record()
    began = time.perf_counter()
    contestant.run()
    times.host.append((time.perf_counter() - began) / calls)
    end.record()
    synchronize(device)
    times.gpu.append(begin.elapsed_time(end) / 1e3 / calls)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def copy_of(contestant: Contestant, report: Report) -> Contestant:
    """A copy of as many bytes, or of the largest number that is enough for a rate."""
    assert contestant.bytes_moved is not None
    moved = min(contestant.bytes_moved, LARGEST_COPY)
    return copy_like(Contestant(contestant.name, contestant.run, bytes_moved=moved), report.device)


def figures(
    contestant: Contestant, times: dict[str, Times], copy: Contestant | None = None, opponent: str | None = None
) -> dict[str, Figure]:
    """What a row says of a contestant: medians, the rate at which it moves bytes, and how that compares.

    Args:
        contestant: that the row is about.
        times: of all that were measured in the same turns.
        copy: among them, whose rate is the measure.
        opponent: name of another one among them, with which its GPU time is compared, turn by turn.
    """
    own = times[contestant.name]
    found: dict[str, Figure] = {
        "gpu_ms": 1e3 * statistics.median(own.gpu),
        "host_ms": 1e3 * statistics.median(own.host),
        "wall_ms": 1e3 * statistics.median(own.wall),
        "all_gpu_ms": [round(1e3 * value, 5) for value in own.gpu],
    }
    if contestant.bytes_moved is not None:
        found["GB_per_s"] = contestant.bytes_moved / 1e9 / statistics.median(own.gpu)
        if copy is not None and copy.bytes_moved is not None:
            ratio = against(own.gpu, times[copy.name].gpu)["ratio"]
            found["share_of_copy"] = contestant.bytes_moved / copy.bytes_moved / ratio
    if opponent is not None and opponent != contestant.name:
        compared = against(own.gpu, times[opponent].gpu)
        found[f"times_{opponent.replace(' ', '_')}"] = compared["ratio"]
        found["quartiles"] = [compared["lower_quartile"], compared["upper_quartile"]]
    return found
