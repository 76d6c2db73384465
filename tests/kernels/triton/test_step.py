"""The fused step against the reference on the CPU: masks and importance exactly, values to rounding."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roast_optim.kernels import reference
from roast_optim.kernels.step import Position, Selection, StepOptions
from roast_optim.kernels.triton import launch, roast_adamw
from tests.support.devices import DEVICE, Places, on_device
from tests.support.differences import first_difference, record_units
from tests.support.steps import (
    OPTION_STRATEGIES,
    OPTIONAL,
    OPTIONS,
    VALUES,
    Step,
    assert_same_tensors,
    optional_tensors,
    random_step,
    score_dtypes,
    selection,
)

TRITON = on_device("triton")
BLOCK = launch.block_size(DEVICE)
CHUNK = BLOCK * launch.BLOCKS_PER_PROGRAM
# Rounding errors of a result that was rounded a few times.
RELATIVE_ERROR = {torch.float32: 2.0**-21, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}


def a_selection(draw_number: int | None = None, *, seed: int = 2**63 + 5, **more: Any) -> Selection:
    return selection(draw_number, **{"beta": 3.0, "seed": seed, **more})


def a_step(shapes: list[tuple[int, ...]], **options: Any) -> Step:
    """With second moments bounded below, so that no update is much larger than the learning rate."""
    return random_step(shapes, **{"smallest_square": 0.1, "steps": [3 + i for i in range(len(shapes))], **options})


def assert_step_agrees(step: Step) -> None:
    """One step of both backends on equal tensors.

    A parameter may be off by the rounding errors of an update, which is not much larger than the learning rate.
    """
    expected, before, options = step.copy(), step.copy(), step.options
    # The reference computes float32 pow of step tensors, which is less exact than what it stands for.
    reference.roast_adamw_(expected.rows, replace(options, capturable=False))
    step.run(TRITON)
    assert_same_tensors(step, before, ["grad"])
    assert_same_tensors(step, expected, [name for name in step.names if name not in VALUES])
    for i, (row, wanted) in enumerate(zip(step.rows, expected.rows, strict=True)):
        for name in set(VALUES) & set(step.names):
            actual, right = getattr(row, name), getattr(wanted, name)
            error = max(RELATIVE_ERROR[row.param.dtype], RELATIVE_ERROR[actual.dtype])
            largest = float(options.lr) * 20 if name == "param" else float(right.abs().amax()) if right.numel() else 0.0
            difference = first_difference(
                actual.double(), right.double(), right.double().abs() * error + largest * error
            )
            assert difference is None, f"{name} of parameter {i}: {difference}"
            # What an update nearly cancels is as exact as what it was before.
            scale = torch.maximum(right.abs(), getattr(before.rows[i], name).abs())
            record_units(f"step, {name}", actual, right, scale)


SHAPES = [(), (0,), (1,), (5,), (31, 3), (BLOCK,), (BLOCK + 1,), (3 * BLOCK + 5,)]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    ("param_dtype", "state_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_dtypes_and_alignments(param_dtype: torch.dtype, state_dtype: torch.dtype, offset: int) -> None:
    assert_step_agrees(
        a_step(
            SHAPES,
            dtype=param_dtype,
            moment_dtype=state_dtype,
            offset=offset,
            optional=OPTIONAL,
            selection=a_selection(),
        )
    )


@settings(max_examples=settings.default.max_examples // 4)
@given(data=st.data())
def test_any_options(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    step = a_step(
        shapes,
        score_dtype=data.draw(score_dtypes),
        offset=data.draw(st.integers(0, 3)),
        seed=data.draw(st.integers(0, 99)),
        lr=data.draw(st.sampled_from([0.0, 1e-3, 1.0, torch.tensor(1e-2), torch.tensor(1e-2).double()])),
        beta1=data.draw(st.sampled_from([0.0, 0.5, 0.9, torch.tensor(0.9)])),
        beta2=data.draw(st.sampled_from([0.5, 0.9, 0.999])),
        optional=data.draw(optional_tensors),
        capturable=data.draw(st.booleans()),
        **data.draw(st.fixed_dictionaries(OPTION_STRATEGIES)),
        selection=data.draw(
            st.sampled_from([None, a_selection(), a_selection(1), a_selection(2**31 + 7, seed=0, acts_on="update")])
        ),
    )
    assert_step_agrees(step)


@pytest.mark.parametrize(
    "position",
    [
        Position(3, 0, 400, 0),
        Position(3, 4, 400, 0),
        Position(3, 1_001, 400, 0),
        Position(3, 2**34 - 6, 400, 0),
        Position(3, 40, 20, 100),
        Position(3, 7, 1, 3),
        Position(3, 2, 7, 11),
        Position(2**31 + 1, 6, 399, 1_000),
    ],
    ids=str,
)
@pytest.mark.parametrize("numel", [400, BLOCK + 3])
def test_positions(position: Position, numel: int) -> None:
    if position.inner_length == 400:
        position = position._replace(inner_length=numel)
    assert_step_agrees(a_step([(numel,)], positions=[position], selection=a_selection(), beta1=0.0))


def selected_gradient(gradient: Tensor, codes: Tensor, which: Selection) -> Tensor:
    """The gradient that AdamW sees: the first moment after a first step with beta1 = 0."""
    zeros = {name: torch.zeros_like(gradient) for name in ("param", "exp_avg", "exp_avg_sq")}
    step = a_step([tuple(gradient.shape)], steps=0, beta1=0.0, accumulate=False, selection=which)
    step.change(**zeros, grad=gradient, rank_code=codes)
    return step.run(TRITON).rows[0].exp_avg


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_selected_gradients_are_the_references_bit_for_bit(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    special = [0.0, -0.0, math.nan, math.inf, -math.inf, largest, -largest, largest / 3, -largest / 1e3, 1e-7, -1e-30]
    gradient = torch.tensor(special * 300, dtype=torch.float64).to(dtype)
    codes = torch.arange(gradient.numel()).remainder(256).to(torch.uint8)
    which = a_selection(alpha=0.5, beta=20.0)
    place = Position.whole(0, gradient.numel())
    words = reference.draw_words(place, 0, codes.numel(), seed=which.seed, draw_number=1, device=codes.device)
    expected = reference.selected_gradient(gradient, codes, words, which)
    actual = selected_gradient(gradient, codes, which)
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    finite = ~expected.isnan()
    assert torch.equal(actual.isnan(), ~finite)
    assert torch.equal((actual[finite] + 0).view(integers), (expected[finite] + 0).view(integers))  # + 0: one zero
    assert (actual == largest).any()


def test_an_element_that_is_not_kept_has_gradient_zero_whatever_it_is() -> None:
    gradient = torch.tensor([math.nan, math.inf, -math.inf, 1.0] * 64)
    actual = selected_gradient(gradient, torch.zeros(256, dtype=torch.uint8), a_selection(alpha=1.0, beta=100.0))
    assert torch.equal(actual, torch.zeros(256))


def test_importance_saturates_and_takes_no_nonfinite_gradient() -> None:
    step = a_step([(6,)])
    step.change(
        grad=torch.tensor([math.nan, math.inf, -math.inf, 3e38, 1e-23, 2.0]),
        importance=torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 3.4e38]),
    )
    step.run(TRITON)
    largest = torch.finfo(torch.float32).max
    expected = torch.tensor([1.0, 2.0, 3.0, largest, 1e-23 * 1e-23, 3.4e38])
    assert torch.equal(step.rows[0].importance, expected)


@pytest.mark.parametrize("step", [0, 1, 9, 999, 99_999])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.5, 0.9), (0.9, 0.999), (0.999999, 0.9)], ids=str)
def test_bias_correction_loses_no_digits(step: int, capturable: bool, betas: tuple[float, float]) -> None:
    """From zero moments the update is lr (1 - b1) g / (1 - b1^t) over sqrt((1 - b2) g^2 / (1 - b2^t))."""
    beta1, beta2 = betas
    options = {"lr": 1.0, "beta1": beta1, "beta2": beta2, "eps": 0.0, "weight_decay": 0.0, "accumulate": False}
    taken = a_step([(4,)], steps=step, optional=(), capturable=capturable, **options)
    taken.change(**{name: torch.zeros(4) for name in ("param", "exp_avg", "exp_avg_sq")}, grad=torch.ones(4))
    param = taken.run(TRITON).rows[0].param

    def unbiased(beta: float) -> float:
        return (1 - beta) / -math.expm1((step + 1) * math.log(beta)) if beta else 1.0

    torch.testing.assert_close(
        param, torch.full((4,), -unbiased(beta1) / math.sqrt(unbiased(beta2))), rtol=1e-6, atol=0.0
    )


def test_a_subnormal_second_moment_does_not_count_as_zero() -> None:
    step = a_step([(8,)], eps=0.0)
    step.change(grad=torch.full((8,), 1e-21), exp_avg=torch.full((8,), 1e-21), exp_avg_sq=torch.full((8,), 1e-42))
    assert_step_agrees(step)


def test_not_a_number_stays_in_the_largest_second_moment() -> None:
    step = a_step([(40,)], optional=OPTIONAL)
    step.rows[0].max_exp_avg_sq[3] = math.nan
    step.run(TRITON)
    assert step.rows[0].max_exp_avg_sq.isnan().nonzero().tolist() == [[3]]


def test_one_launch_serves_all_parameters_of_a_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = []

    class CountedTable(roast_adamw.PointerTable):
        def __init__(self, device: torch.device, numels: list[int], columns: list[list[int]]) -> None:
            super().__init__(device, numels, columns)
            tables.append(len(numels))

    monkeypatch.setattr(roast_adamw, "PointerTable", CountedTable)
    a_step([(size,) for size in range(1, 101)], selection=a_selection()).run(TRITON)
    assert tables == [100]


def test_what_is_not_contiguous_or_not_float_takes_the_reference() -> None:
    step = a_step([(6, 5), (7,)], selection=a_selection())
    for name in ("param", "exp_avg", "exp_avg_sq", "importance", "rank_code"):
        setattr(step.rows[0], name, getattr(step.rows[0], name).T.contiguous().T)
    assert_step_agrees(step)
    step = a_step([(7,)])
    step.change(**{name: getattr(step.rows[0], name).double() for name in ("param", "grad", "exp_avg", "exp_avg_sq")})
    expected = step.copy().run(reference)
    step.run(TRITON)  # on a GPU the reference rounds otherwise than on a CPU
    torch.testing.assert_close(step.rows[0].param, expected.rows[0].param, rtol=1e-13, atol=1e-13)


def noted(step: Step) -> list[str]:
    """The fallbacks of a plan after a step on the device of the tests."""
    places = Places()
    rows = [replace(row, **{name: places.of(tensor) for name, tensor in row.tensors() if name != "step"})
            for row in step.rows]  # fmt: skip
    plan = roast_adamw.plan(rows)
    for _ in range(2):
        plan.step([row.grad for row in rows], step.options)
    return plan.fallbacks


@pytest.mark.parametrize("name", ["param", "grad", "exp_avg", "rank_code"])
def test_a_tensor_that_is_not_contiguous_is_named_with_a_cure(name: str) -> None:
    step = a_step([(4,), (6, 5)])
    setattr(step.rows[1], name, getattr(step.rows[1], name).T.contiguous().T)
    (reason,) = noted(step)
    assert "is not contiguous" in reason
    assert "contiguous" in reason.partition(":")[2]
    assert ("a gradient" if name == "grad" else name) in reason


@pytest.mark.parametrize(
    ("dtypes", "message"),
    [
        ((torch.float64, torch.float64), "param is torch.float64, and only .* are fused: use float32"),
        ((torch.float32, torch.float64), "exp_avg is torch.float64.*: use state_dtype=torch.float32"),
    ],
    ids=str,
)
def test_a_dtype_that_is_not_fused_is_named_with_a_cure(dtypes: tuple[torch.dtype, torch.dtype], message: str) -> None:
    (reason,) = noted(a_step([(4,), (6, 5)], dtype=dtypes[0], moment_dtype=dtypes[1]))
    assert re.search(message, reason), reason


def test_a_tensor_of_another_dtype_than_the_others_is_said_of_and_nothing_else_is() -> None:
    step = a_step([(4,), (6, 5)])
    assert noted(step) == []
    step.change(exp_avg_sq=step.rows[0].exp_avg_sq.bfloat16())
    (reason,) = noted(step)
    assert "exp_avg_sq is torch.bfloat16 and not torch.float32: convert the checkpoint" in reason


def test_importance_of_bfloat16_is_fused_and_of_another_narrow_dtype_said_of() -> None:
    assert noted(a_step([(4,), (6, 5)], score_dtype=torch.bfloat16)) == []
    step = a_step([(4,), (6, 5)])
    step.change(importance=step.rows[0].importance.half())
    (reason,) = noted(step)
    assert "importance is torch.float16 and not torch.float32: convert the checkpoint" in reason


def test_no_parameters_at_all() -> None:
    TRITON.roast_adamw_([], StepOptions(**OPTIONS))


def test_tensors_that_do_not_fit_are_refused_before_anything_changes() -> None:
    step = a_step([(4,), (5,)])
    before = step.copy()
    step.rows[1].grad = torch.zeros(6)
    with pytest.raises(ValueError, match=rf"shape \(5,\) on {DEVICE} came with a tensor of shape \(6,\)"):
        step.run(TRITON)
    step.rows[1].grad = torch.zeros(5, device="meta")
    with pytest.raises(ValueError, match="on meta"):
        step.run(TRITON)
    step.rows[1].grad = before.rows[1].grad
    step.rows[1].step = torch.zeros((), device="meta")
    step.set(capturable=True)
    with pytest.raises(ValueError, match="capturable=True with a step count on meta"):
        step.run(TRITON)
    assert torch.equal(step.rows[0].param, before.rows[0].param)
    assert step.rows[0].step == before.rows[0].step
