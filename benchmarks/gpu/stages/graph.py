"""A step in a CUDA graph: its replays equal eager steps bit for bit, and what cannot be replayed is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.contestants import ALPHA, BETA, RECIPE
from benchmarks.kernels.pairs import Contestant
from benchmarks.kernels.workloads import make_parameters
from roast_optim import RoastAdamW

from ..report import Report, run_stage
from ..steps import optimizer_over, shapes_of
from ..timing import figures, in_turn

REPLAYS, REPLAYS_IN_DRY_RUN = 20, 2
WORKLOAD = "110M"
SMALLER = "25M"

CAPTURABLE: Mapping[str, Any] = {"capturable": True, "refresh_every": None}
# What a replay, which runs no Python, would get wrong: one step count and one mask for ever; the draw of one refresh;
# importance at every step or at none; no refresh. The word is what an error has to name.
IMPOSSIBLE: Mapping[str, dict[str, Any]] = {
    "capturable": {"capturable": False},
    "mask_schedule": {"mask_schedule": "refresh"},
    "importance_every": {"importance_every": 4},
    "refresh_every": {"refresh_every": 3},
}
BEFORE_RANKS = "refresh"  # a graph without masks, although ranks come later


def graph(report: Report) -> None:
    """Equality first, then time, then what should be refused: a failed capture might disturb what comes after."""
    with report.going_on("replays"):
        replays_equal_eager_steps(report)
    with report.going_on("time of a replay"):
        time_of_a_replay(report)
    for name, options in list(IMPOSSIBLE.items())[: 1 if report.dry_run else None]:
        right_or_refused(report, name, {**CAPTURABLE, **options}, ranked=True)
    right_or_refused(report, BEFORE_RANKS, CAPTURABLE, ranked=False)


def replays_equal_eager_steps(report: Report) -> None:
    """As many as there are, with newer ranks after half of them."""
    differing = differing_tensors(report, WORKLOAD, CAPTURABLE, ranked=True)
    if differing:
        report.wrong("replays", f"{len(differing)} tensors differ from eager steps: {', '.join(differing[:5])}")
    else:
        report.measured("replays", replays=_replays(report), differing_tensors=0)


def differing_tensors(report: Report, workload: str, options: Mapping[str, Any], *, ranked: bool) -> list[str]:
    """What differs after as many replays as an equal optimizer took eager steps, with a refresh of both between.

    The first half is taken with the ranks of the capture, the second with newer ones.
    """
    eager, captured = (_optimizer(report, workload, options, ranked=ranked) for _ in range(2))
    replay = capture(captured, report)
    for count in range(_replays(report)):
        if count == _replays(report) // 2:
            eager.refresh()
            captured.refresh()
        eager.step()
        replay()
    return [
        f"{name} of parameter {index}"
        for index, (mine, other) in enumerate(zip(captured.state, eager.state, strict=True))
        for name in ("parameter", *eager.state[other])
        if not torch.equal(_tensor(captured, mine, name), _tensor(eager, other, name))
    ]


def time_of_a_replay(report: Report) -> None:
    """A replay beside the same step without a graph."""
    eager, captured = (_optimizer(report, WORKLOAD, CAPTURABLE, ranked=True) for _ in range(2))
    contestants = [Contestant("replay", capture(captured, report)), Contestant("eager step", eager.step)]
    times = in_turn(contestants, report)
    for contestant in contestants:
        report.measured(contestant.name, **figures(contestant, times, opponent="eager step"))


def right_or_refused(report: Report, name: str, options: Mapping[str, Any], *, ranked: bool) -> None:
    """A capture whose replays would differ from eager steps must raise, and name what stands in the way."""
    set_to = ", ".join(f"{option}={value!r}" for option, value in options.items() if option == name)
    what = f"capture with {set_to}" if ranked else "capture before the first refresh"
    try:
        differing = differing_tensors(report, SMALLER, options, ranked=ranked)
    except (RuntimeError, ValueError) as error:
        message = str(error)
        if name in message:
            report.measured(what, raised=message.splitlines()[0][:200])
        else:
            report.wrong(what, f"raised without naming {name}: {message[:300]}")
        return
    if differing:
        report.wrong(what, f"neither raised nor right: {len(differing)} tensors differ, {', '.join(differing[:3])}")
    elif report.device.type == "cpu":
        report.absent(what, "a CPU captures no graphs")
    else:
        report.measured(what, differing_tensors=0)


def capture(optimizer: RoastAdamW, report: Report) -> Callable[[], object]:
    """A function that takes the captured step; on a CPU the step itself."""
    if report.device.type == "cpu":
        return optimizer.step
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        optimizer.step()
    return recorded.replay


def _optimizer(report: Report, workload: str, options: Mapping[str, Any], *, ranked: bool) -> RoastAdamW:
    """Stepped once, since a capture needs compiled kernels and state."""
    parameters = make_parameters(shapes_of(workload, report), report.device)
    if ranked:
        optimizer = optimizer_over(parameters, **options)
    else:
        optimizer = RoastAdamW(parameters, backend="triton", alpha=ALPHA, beta=BETA, **{**RECIPE, **options})
    optimizer.step()
    return optimizer


def _replays(report: Report) -> int:
    return REPLAYS_IN_DRY_RUN if report.dry_run else REPLAYS


def _tensor(optimizer: RoastAdamW, parameter: Tensor, name: str) -> Tensor:
    return parameter if name == "parameter" else optimizer.state[parameter][name]


if __name__ == "__main__":
    run_stage(graph)
