"""Steps of smaller and larger models and of many tiny tensors, and refreshes."""

from __future__ import annotations

import gc

import torch

from benchmarks.kernels.contestants import refreshes, squared_gradients
from benchmarks.kernels.workloads import make_parameters
from roast_optim.importance import percentile_ranks

from ..report import Report, run_stage
from ..steps import DTYPES, FUSED, ROAST, compare_steps, optimizer_over, shapes_of
from ..timing import copy_of, figures, in_turn

WORKLOADS = ("25M", "1,000 tiny tensors", "355M", "1B")
REFRESHED = ("110M", "1B")


def step_the_rest(report: Report) -> None:
    """Each size gives its memory back before the next."""
    for workload in WORKLOADS[:2] if report.dry_run else WORKLOADS:
        for dtype in DTYPES:
            with report.going_on(f"{workload}, {dtype}"):
                compare_steps(report, workload, dtype, [ROAST, FUSED], f"{workload}, {dtype}: ")
            _give_back(report)
    for workload in REFRESHED:
        with report.going_on(f"refresh, {workload}"):
            refresh(report, workload)
        _give_back(report)


def refresh(report: Report, workload: str) -> None:
    """Time a refresh, and compare its rank codes with the reference's where that is quick."""
    parameters = make_parameters(shapes_of(workload, report), report.device)
    optimizer = optimizer_over(parameters)
    scores = squared_gradients(optimizer)
    candidate = refreshes(optimizer, scores, "refresh")
    copy = copy_of(candidate, report)
    times = in_turn([candidate, copy], report, rounds=10, host_waits=True)
    what = f"refresh, {workload}"
    report.measured(what, **figures(candidate, times, copy))
    if workload == REFRESHED[0]:
        codes = [state["rank_code"].cpu() for state in optimizer.state.values()]
        expected = percentile_ranks([score.cpu() for score in scores])
        differing = sum(int((code != wanted).sum()) for code, wanted in zip(codes, expected, strict=True))
        if differing:
            report.wrong(f"{what}: rank codes", f"{differing:,} differ from the reference's")
        else:
            report.measured(f"{what}: rank codes", differing=0, compared=sum(code.numel() for code in codes))


def _give_back(report: Report) -> None:
    gc.collect()  # optimizers refer to themselves
    if report.device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    run_stage(step_the_rest)
