"""The GPU against the reference on the CPU: bit for bit where that is promised, else in units of the last place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from roast_optim import RoastAdamW
from roast_optim.masking import keep_mask

from ..cases import (
    DIVERGENCE_CASES,
    OPTIONS,
    PERTURBATION_CASES,
    STEP_CASES,
    DivergenceCase,
    PerturbationCase,
    StepCase,
    optimizer_of,
    set_gradients,
)
from ..report import Report, run_stage

CPU = torch.device("cpu")
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
STEPS = 4
# Units of the last place by which values may differ after STEPS steps. GPUs approximate exp and sqrt to two units, and
# each step rounds a few times. With moments of 16 bits the reference rounds every single operation, as AdamW does.
MOST_UNITS = {torch.float32: 8 * STEPS, torch.bfloat16: 2 * STEPS, torch.float16: 2 * STEPS}
# Of the largest value: sums of many terms, each of which is rounded.
MOST_ERROR = {torch.float32: 2.0**-18, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}

Compared = tuple[dict[str, float], list[str]]  # figures, and what differs more than it may


def smoke(report: Report) -> None:
    """Every case, whatever becomes of the one before; one row per kernel sums up those that agree."""
    device = report.device
    for kind, cases in (
        ("step", {case.name: partial(compare_steps, case, device) for case in STEP_CASES}),
        ("perturbation", {case.name: partial(compare_values, case, device) for case in PERTURBATION_CASES}),
        ("symmetric KL", {case.name: partial(compare_values, case, device) for case in DIVERGENCE_CASES}),
    ):
        agreeing = [found for name, compare in cases.items() if (found := _attempt(report, f"{kind}: {name}", compare))]
        worst = {name: max(found[name] for found in agreeing) for name in (agreeing[0] if agreeing else ())}
        report.measured(
            kind, variants=len(cases), agree=len(agreeing), **{f"most_{name}": worst[name] for name in worst}
        )


def _attempt(report: Report, what: str, compare: Callable[[], Compared]) -> dict[str, float] | None:
    """The figures of a case that agrees."""
    with report.going_on(what):  # a kernel that cannot be compiled, say
        found, differences = compare()
        if not differences:
            report.detail(what, **found)
            return found
        report.wrong(what, "; ".join(differences), **found)
    return None


def compare_steps(case: StepCase, device: torch.device, backend: str = "triton") -> Compared:
    """The largest differences in units of the last place, and what differs more than it may."""
    ours, theirs = optimizer_of(case, backend, device), optimizer_of(case, "reference", CPU)
    begin = [parameter.detach().clone() for parameter in theirs.param_groups[0]["params"]]
    differences: dict[str, None] = {}
    for step in range(1, STEPS + 1):
        for optimizer in (ours, theirs):
            set_gradients(case, optimizer, step)
            if step == 1:
                with optimizer.measure_importance():
                    optimizer.step()
            elif step % 2 == 0:
                optimizer.refresh()
            optimizer.step()
        differences |= dict.fromkeys(f"step {step}: {each}" for each in _exact_differences(ours, theirs))
    units = {"parameter_units": 0.0, "second_moment_units": 0.0}
    for index, (mine, other) in enumerate(_pairs(ours, theirs)):
        moment, expected = ours.state[mine]["exp_avg_sq"], theirs.state[other]["exp_avg_sq"]
        # A parameter that an update nearly cancels is as exact as what it was before.
        scale = torch.maximum(other.detach().abs(), begin[index].abs())
        for name, apart in (
            ("parameter_units", units_apart(mine.detach().cpu(), other.detach(), scale)),
            ("second_moment_units", units_apart(moment.cpu(), expected, expected)),
        ):
            units[name] = max(units[name], apart)
            if not apart <= MOST_UNITS[case.dtype]:
                what = name.removesuffix("_units").replace("_", " ")
                differences[f"{what} {index} is {apart:.3g} units of the last place off"] = None
    return units, list(differences)


def _pairs(ours: RoastAdamW, theirs: RoastAdamW) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True)


def _exact_differences(ours: RoastAdamW, theirs: RoastAdamW) -> Iterator[str]:
    """What must be equal bit for bit and is not: steps, importance, rank codes, masks, also by their definition."""
    group = theirs.param_groups[0]
    for index, (mine, other) in enumerate(_pairs(ours, theirs)):
        state, expected = ours.state[mine], theirs.state[other]
        for name in ("step", "importance", "rank_code"):
            if name in expected and not torch.equal(state[name].cpu(), expected[name]):
                count = int((state[name].cpu() != expected[name]).sum())
                yield f"{name} of parameter {index} differs in {count} of {expected[name].numel()} elements"
        if group["betas"][0] != 0:
            continue
        kept = state["exp_avg"].cpu() != 0
        if not torch.equal(kept, expected["exp_avg"] != 0):
            yield f"the mask of parameter {index} differs"
        if not torch.equal(state["exp_avg"].cpu(), expected["exp_avg"]):
            yield f"the masked gradient of parameter {index} differs"
        if group["selective"] and group["refreshes"]:
            by_refresh = theirs.options.mask_schedule == "refresh"
            wanted = keep_mask(
                expected["rank_code"],
                group["alpha"],
                group["beta"],
                seed=OPTIONS["seed"],
                draw_number=group["refreshes"] if by_refresh else int(expected["step"]),
                position=theirs.positions[other],
            )
            if not torch.equal(kept, wanted):
                yield f"the mask of parameter {index} is not keep_mask's"


def units_apart(actual: Tensor, expected: Tensor, scale: Tensor) -> float:
    """The largest difference in units of the last place that numbers as large as ``scale`` have; 0 for no elements."""
    if expected.numel() == 0:
        return 0.0
    magnitude = scale.abs().clamp(min=torch.finfo(scale.dtype).tiny)
    following = (magnitude.view(INTEGERS[scale.dtype]) + 1).view(scale.dtype)
    unit = following.double() - magnitude.double()
    return float(((actual.double() - expected.double()).abs() / unit).max())


def compare_values(case: PerturbationCase | DivergenceCase, device: torch.device) -> Compared:
    """The largest error relative to the largest value, against the same computed in float64 by torch."""
    actual, expected = case.run(device), case.run(CPU, torch.float64)
    errors = [0.0]
    for mine, other in zip(*(_as_list(each) for each in (actual, expected)), strict=True):
        largest = float(other.abs().max()) or 1.0
        errors.append(float((mine.cpu().double() - other).abs().max()) / largest)
    worst = max(errors) if all(error == error for error in errors) else float("inf")
    most = MOST_ERROR[case.dtype]
    return {"error": worst}, [] if worst <= most else [f"error {worst:.2g} of the largest value, at most {most:.2g}"]


def _as_list(result: Tensor | list[Tensor]) -> list[Tensor]:
    return result if isinstance(result, list) else [result]


if __name__ == "__main__":
    run_stage(smoke)
