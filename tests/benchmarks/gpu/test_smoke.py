"""The comparison with the reference finds whatever deviates, and nothing where nothing does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import cases
from benchmarks.gpu.cases import STEP_CASES, StepCase
from benchmarks.gpu.report import Report
from benchmarks.gpu.stages import smoke
from roast_optim import RoastAdamW
from tests.benchmarks.gpu.written import rows

CPU = torch.device("cpu")
ALIGNED = STEP_CASES[0]


@pytest.mark.parametrize("case", STEP_CASES, ids=lambda case: case.name)
def test_smoke_finds_nothing_wrong_where_nothing_is(case: StepCase) -> None:
    figures, differences = smoke.compare_steps(case, CPU, "reference")
    assert differences == []
    if not case.options.get("capturable"):
        assert figures == {"parameter_units": 0.0, "second_moment_units": 0.0}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"seed": 8}, "the mask of parameter 0 differs"),
        ({"alpha": 0.51}, "the mask of parameter 0 differs"),
        ({"lr": 1.0001e-2}, "parameter 0 is"),
        ({"weight_decay": 0.1001}, "parameter 0 is"),
        ({"betas": (0.0, 0.9901)}, "second moment 0 is"),
        ({"importance_every": 2}, "importance of parameter 0 differs"),
        ({"rescale": False}, "the masked gradient of parameter 0 differs"),
        ({"maximize": True}, "the masked gradient of parameter 0 differs"),
        ({"mask_schedule": "refresh"}, "the mask of parameter 0 is not keep_mask's"),
        ({"importance": "random"}, "rank_code of parameter 0 differs"),
    ],
    ids=str,
)
def test_smoke_finds_every_deviation(monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any], says: str) -> None:
    calls = 0

    def first_one_is_faulty(case: StepCase, backend: str, device: torch.device) -> RoastAdamW:
        nonlocal calls
        calls += 1
        changed = replace(case, options={**case.options, **fault}) if calls == 1 else case
        return cases.optimizer_of(changed, backend, device)

    monkeypatch.setattr(smoke, "optimizer_of", first_one_is_faulty)
    _, differences = smoke.compare_steps(ALIGNED, CPU, "reference")
    assert any(says in each for each in differences), differences


def test_smoke_finds_another_position(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in STEP_CASES if case.name == "offsets that pass 2^34")
    made: list[RoastAdamW] = []

    def without_its_upper_bits(case: StepCase, backend: str, device: torch.device) -> RoastAdamW:
        made.append(optimizer := cases.optimizer_of(case, backend, device))
        if len(made) == 1:
            for parameter, place in optimizer.positions.items():
                optimizer.positions[parameter] = place._replace(first_index=place.first_index % 2**34)
        return optimizer

    monkeypatch.setattr(smoke, "optimizer_of", without_its_upper_bits)
    first_index = 2**34 + 2
    _, differences = smoke.compare_steps(replace(case, position=cases._run(first_index)), CPU, "reference")
    assert any("mask of parameter 0 differs" in each for each in differences), differences


def test_a_case_that_raises_is_a_row_and_the_others_run(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(case: StepCase, device: torch.device) -> smoke.Compared:
        if case is ALIGNED:
            raise RuntimeError("no such instruction")
        return {"parameter_units": 1.0}, ["it differs"] if case is STEP_CASES[1] else []

    monkeypatch.setattr(smoke, "compare_steps", compare)
    monkeypatch.setattr(smoke, "compare_values", lambda case, device: ({"error": 0.0}, []))
    smoke.smoke(report)
    assert report.any_wrong
    found = {row["what"]: row for row in rows(report)}
    assert found["step: aligned"]["wrong"] == "RuntimeError: no such instruction"
    assert found["step: unaligned"]["wrong"] == "it differs"
    assert found["step"]["figures"]["agree"] == len(STEP_CASES) - 2


@pytest.mark.parametrize(
    ("dtype", "unit"), [(torch.float32, 2.0**-23), (torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)], ids=str
)
def test_units_of_the_last_place(dtype: torch.dtype, unit: float) -> None:
    expected = torch.tensor([1.0, -1.0, 4.0, 0.0], dtype=dtype)
    actual = expected + torch.tensor([3 * unit, 0.0, -4 * unit, 0.0], dtype=dtype)
    assert smoke.units_apart(actual, expected, expected) == 3.0
    assert smoke.units_apart(actual, expected, torch.full_like(expected, 4.0)) == 1.0
    assert smoke.units_apart(expected[:0], expected[:0], expected[:0]) == 0.0
    tiny = torch.tensor([torch.finfo(dtype).tiny], dtype=dtype)
    assert smoke.units_apart(tiny, torch.zeros_like(tiny), torch.zeros_like(tiny)) > 100
    assert not smoke.units_apart(expected / 0, expected, expected) <= 1e9


def test_an_error_of_values_is_relative_to_the_largest_and_nan_never_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.DIVERGENCE_CASES[0]
    expected = [torch.tensor([8.0, 1.0]).double()]
    nan = float("nan")
    actual: list[float] = []

    def run(self: object, device: torch.device, wider: torch.dtype | None = None) -> list[Tensor]:
        return expected if wider is not None else [torch.tensor(actual)]

    monkeypatch.setattr(cases.DivergenceCase, "run", run)
    for values, is_right in (([8.0, 1.0], True), ([8.0, 1 + 2**-17], True), ([8.0, 1.001], False), ([8.0, nan], False)):
        actual = values
        assert (smoke.compare_values(case, CPU)[1] == []) == is_right


def test_cases_reach_every_variant_that_is_promised() -> None:
    names = " ".join(case.name for case in STEP_CASES)
    for word in (
        "aligned",
        "unaligned",
        "shard",
        "2^34",
        "bfloat16",
        "float16",
        "amsgrad",
        "on the device",
        "rounding",
    ):
        assert word in names
    assert {(0,), ()} <= set(cases.SHAPES)
    unaligned = next(case for case in STEP_CASES if case.unaligned)
    made = cases.tensors(unaligned, CPU, seed=0, scale=1.0)
    assert all(tensor.data_ptr() % 16 for tensor in made if tensor.numel())
    assert all(map(torch.equal, made, cases.tensors(unaligned, CPU, seed=0, scale=1.0)))
