"""Measuring in turn: who runs when, and what the ratios are. No test looks at a clock."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.kernels.pairs import COPY, Contestant, against, compare, copy_like

CPU = torch.device("cpu")


class FakeBenchmark:
    """The fixture of pytest-benchmark with a clock that always shows two seconds more."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.group: str | None = None
        self.stats: Any = None

    def pedantic(self, target: Callable[[], object], *, setup: Callable[[], None], rounds: int = 1) -> None:
        for _ in range(rounds):
            setup()
            target()
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[2.0] * rounds))


def contestant(name: str, log: list[str], **options: Any) -> Contestant:
    return Contestant(name, lambda: log.append(name), **options)


def test_opponents_and_candidate_take_turns() -> None:
    calls: list[str] = []
    compare(FakeBenchmark(), contestant("a", calls), [contestant("b", calls), contestant("c", calls)], CPU, seconds=0)
    assert calls == ["b", "c", "a"] * (len(calls) // 3)
    assert len(calls) == 3 * (2 + 3)  # two turns to warm up, three rounds at least


def test_what_takes_a_minute_runs_once() -> None:
    calls: list[str] = []
    benchmark = FakeBenchmark()
    compare(benchmark, contestant("a", calls), [contestant("b", calls)], CPU, once=True)
    assert calls == ["b", "a"]
    assert benchmark.extra_info["rounds"] == 1


def test_preparation_comes_before_every_run() -> None:
    calls: list[str] = []

    def prepare() -> None:
        calls.append("prepare")

    both = [contestant(name, calls, prepare=prepare) for name in ("a", "b")]
    compare(FakeBenchmark(), both[0], both[1:], CPU, seconds=0)
    assert calls == ["prepare", "b", "prepare", "a"] * (len(calls) // 4)


def test_only_the_rounds_count_and_seconds_are_per_call() -> None:
    benchmark = FakeBenchmark()
    compare(benchmark, contestant("a", [], calls=4, bytes_moved=10.0), [contestant("b", [])], CPU, seconds=0)
    assert benchmark.extra_info["seconds"] == 0.5
    assert benchmark.extra_info["bytes_moved"] == 10.0
    assert benchmark.extra_info["rounds"] == 3
    assert set(benchmark.extra_info["opponents"]) == {"b"}
    assert "copy_share" not in benchmark.extra_info


def test_share_of_the_copy_is_the_inverse_of_the_ratio_to_it() -> None:
    benchmark = FakeBenchmark()
    candidate = contestant("a", [], bytes_moved=800.0)
    compare(benchmark, candidate, [copy_like(candidate, CPU)], CPU, seconds=0)
    assert benchmark.extra_info["copy_share"] == 1 / benchmark.extra_info["opponents"][COPY]["ratio"]


def test_copy_moves_as_many_bytes_as_the_candidate() -> None:
    copy = copy_like(contestant("a", [], bytes_moved=800.0), CPU)
    moved = copy.run()
    assert isinstance(moved, torch.Tensor)
    assert 2 * moved.nbytes == 800
    assert bool((moved == 1).all())


def test_ratio_is_the_median_of_the_ratios_and_not_the_ratio_of_the_medians() -> None:
    slow_second_turn = against([1.0, 30.0, 1.0, 2.0, 1.0], [2.0, 20.0, 1.0, 1.0, 2.0])
    assert slow_second_turn == {"seconds": 2.0, "ratio": 1.0, "lower_quartile": 0.5, "upper_quartile": 1.5}


def test_a_single_round_has_no_spread() -> None:
    assert against([3.0], [2.0]) == {"seconds": 2.0, "ratio": 1.5, "lower_quartile": 1.5, "upper_quartile": 1.5}


def test_turns_must_be_complete() -> None:
    with pytest.raises(ValueError, match="zip"):
        against([1.0, 2.0], [1.0])
