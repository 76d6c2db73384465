"""Whether another number of warps, blocks per program or elements per thread makes the step faster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter

from torch import nn

from benchmarks.kernels.contestants import roast_steps
from benchmarks.kernels.pairs import Contestant, against
from benchmarks.kernels.workloads import make_parameters

from ..launching import Launching, launched, present
from ..report import Report, run_stage
from ..steps import DTYPES, optimizer_over, shapes_of
from ..timing import in_turn

WINS_BY = 0.03  # of the time; less is not worth another number
FOR_ONE = 4.0  # seconds that one way takes at most, with the compilation of its kernels
WORKLOAD = "110M"


def ways(present_way: Launching) -> list[Launching]:
    """The present one with one number changed, or two that may help one another; what is likeliest to win first."""
    changes: list[dict[str, int]] = [
        {"elements": 8},
        {"blocks": 4},
        {"blocks": 16},
        {"warps": 8},
        {"blocks": 2},
        {"blocks": 32},
        {"warps": 2},
        {"warps": 8, "blocks": 4},
        {"elements": 8, "blocks": 4},
        {"warps": 8, "elements": 8},
        {"blocks": 1},
        {"elements": 16},
    ]
    changed = [replace(present_way, **change) for change in changes]
    return [way for way in dict.fromkeys(changed) if way != present_way]


def choice(report: Report) -> None:
    """Each way against the present one, in turn, until the time is up; and the best."""
    now = present()
    parameters = {name: make_parameters(shapes_of(WORKLOAD, report), report.device, DTYPES[name]) for name in DTYPES}
    presents = {name: _steps("present", parameters[name], now) for name in DTYPES}
    ratios: dict[Launching, dict[str, float]] = {}
    for way in ways(now)[: 1 if report.dry_run else None]:
        if report.seconds_left() < FOR_ONE:
            report.absent(str(way), "no time was left")
            continue
        ratios[way] = {}
        for dtype in DTYPES:
            other = _steps("other", parameters[dtype], way)
            times = in_turn([other, presents[dtype]], report, rounds=10)
            ratios[way][dtype] = against(times["other"].gpu, times["present"].gpu)["ratio"]
        report.measured(str(way), **{f"{dtype}_over_present": ratio for dtype, ratio in ratios[way].items()})
    for dtype in DTYPES:
        tried = {way: by_dtype[dtype] for way, by_dtype in ratios.items()}
        if tried:
            best, ratio = min(tried.items(), key=itemgetter(1))
            wins = ratio < 1 - WINS_BY and not report.dry_run
            report.measured(f"best for {dtype}", way=str(best if wins else now), tried=str(best), over_present=ratio)


def _steps(name: str, parameters: list[nn.Parameter], way: Launching) -> Contestant:
    """Steps that are launched that way, of an optimizer of their own."""
    with launched(way):
        contestant = roast_steps(name, optimizer_over(parameters))
    return Contestant(name, _within(way, contestant.run), calls=contestant.calls, bytes_moved=contestant.bytes_moved)


def _within(way: Launching, run: Callable[[], object]) -> Callable[[], None]:
    def launch() -> None:
        with launched(way):
            run()

    return launch


if __name__ == "__main__":
    run_stage(choice)
