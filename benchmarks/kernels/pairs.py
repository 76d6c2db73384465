"""Measuring in turn: A B A B ..., and the median of the ratios.

A machine that others use too changes its speed from second to second. What is measured one after the other, within a
turn, meets nearly the same machine, so the ratio of two neighbours is steady where their times are not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

FEWEST_ROUNDS, MOST_ROUNDS = 3, 101
COPY = "copy"


@dataclass(frozen=True)
class Contestant:
    """Something to be timed.

    Attributes:
        name: as in table and chart.
        run: does the work, ``calls`` times over.
        prepare: is called before ``run`` in every turn and is not timed.
        calls: seconds and bytes are given per call.
        bytes_moved: bytes of the tensors that one call has to read, plus bytes of those that it has to write; None:
            not known.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    calls: int = 1
    bytes_moved: float | None = None


class Benchmark(Protocol):
    """What is used here of the fixture ``benchmark`` of pytest-benchmark."""

    extra_info: dict[str, Any]
    group: str | None
    stats: Any  # None until it ran, and where benchmarks are disabled

    def pedantic(
        self, target: Callable[[], object], *, setup: Callable[[], None] | None = None, rounds: int = 1
    ) -> Any:
        """Call ``setup``, which is not timed, and ``target``, which is, ``rounds`` times."""


def compare(
    benchmark: Benchmark,
    candidate: Contestant,
    opponents: Sequence[Contestant],
    device: torch.device,
    *,
    seconds: float = 4.0,
    once: bool = False,
) -> None:
    """Time ``candidate`` and its opponents in turn and note the result in ``benchmark.extra_info``.

    Args:
        benchmark: the fixture; it times the candidate, and the opponents have their turns in its ``setup``.
        candidate: what the row is about.
        opponents: what it is compared with; the copy of :func:`copy_like` among them gives the share of the bandwidth.
        device: is waited for at the end of every run.
        seconds: roughly how long to measure, between 3 and 101 rounds.
        once: a single round without warm-up, for what takes a minute.
    """
    times: dict[str, list[float]] = {opponent.name: [] for opponent in opponents}

    def opponents_run() -> None:
        for opponent in opponents:
            times[opponent.name].append(timed(opponent, device))
        prepare(candidate, device)

    rounds = 1
    if not once:
        for _ in range(2):  # the first touches memory and code and starts threads, the second says how long a turn is
            started = time.perf_counter()
            opponents_run()
            run(candidate, device)
            turn = time.perf_counter() - started
        rounds = min(max(round(seconds / turn), FEWEST_ROUNDS), MOST_ROUNDS)
        for taken in times.values():
            taken.clear()

    benchmark.pedantic(lambda: run(candidate, device), setup=opponents_run, rounds=rounds)
    if benchmark.stats is None:
        return
    own = [taken / candidate.calls for taken in benchmark.stats.stats.data]
    benchmark.extra_info["seconds"] = statistics.median(own)
    benchmark.extra_info["rounds"] = rounds
    benchmark.extra_info["opponents"] = {
        opponent.name: against(own, [taken / opponent.calls for taken in times[opponent.name]])
        for opponent in opponents
    }
    if candidate.bytes_moved is not None:
        benchmark.extra_info["bytes_moved"] = candidate.bytes_moved
    if COPY in times:  # of as many bytes, in other words of the bandwidth
        benchmark.extra_info["copy_share"] = 1 / benchmark.extra_info["opponents"][COPY]["ratio"]


def against(own: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios ``own / other``, turn by turn, and the median of the other's seconds."""
    ratios = [mine / other for mine, other in zip(own, others, strict=True)]
    lower, median, upper = statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1 else 3 * ratios
    return {
        "seconds": statistics.median(others),
        "ratio": median,
        "lower_quartile": lower,
        "upper_quartile": upper,
    }


def timed(contestant: Contestant, device: torch.device) -> float:
    """Seconds of one run."""
    prepare(contestant, device)
    started = time.perf_counter()
    run(contestant, device)
    return time.perf_counter() - started


def prepare(contestant: Contestant, device: torch.device) -> None:
    if contestant.prepare is not None:
        contestant.prepare()
        synchronize(device)


def run(contestant: Contestant, device: torch.device) -> None:
    contestant.run()
    synchronize(device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_like(candidate: Contestant, device: torch.device) -> Contestant:
    """``Tensor.copy_`` that moves as many bytes as one call of ``candidate``: half of them read, half written."""
    assert candidate.bytes_moved is not None, f"it is not known how many bytes {candidate.name!r} moves"
    source = torch.ones(max(int(candidate.bytes_moved) // 8, 1), device=device)
    target = torch.zeros_like(source)
    return Contestant(COPY, lambda: target.copy_(source), bytes_moved=candidate.bytes_moved)
