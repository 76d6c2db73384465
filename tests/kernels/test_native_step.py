"""The native step on every instruction set of this machine: masks and importance exact, values to rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roast_optim.kernels import native, reference
from roast_optim.kernels.step import Position, Selection, StepOptions, StepRow
from tests.support.differences import first_difference
from tests.support.instruction_sets import INSTRUCTION_SETS, using
from tests.support.steps import (
    OPTION_STRATEGIES,
    OPTIONAL,
    VALUES,
    Step,
    assert_same_tensors,
    optional_tensors,
    random_step,
    score_dtypes,
    selection,
    selection_targets,
)

DTYPES = (torch.float32, torch.bfloat16)
NO_RESCALING = torch.ones(256)

# Around the widths of vectors, of draws, of blocks and of the work of a thread.
SIZES = (0, 1, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300, 1000, 33_000)
SHAPES = st.sampled_from([(), *((size,) for size in SIZES), (3, 5), (7, 64), (2, 3, 50), (0, 4), (260, 130)])

every_instruction_set = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@st.composite
def positions(draw: st.DrawFn, shapes: list[tuple[int, ...]]) -> list[Position]:
    chosen = []
    for shape in shapes:
        numel = max(torch.Size(shape).numel(), 1)
        inner = draw(st.sampled_from([1, 2, 3, 4, 7, 64, 100, numel, numel + 5]))
        first = draw(st.sampled_from([0, 1, 2, 3, 4, 1_000_001, 2**34 - 40, 2**50 + 3]))
        stride = draw(st.sampled_from([inner, inner + 1, inner + 64, 2**33]))
        chosen.append(Position(draw(st.integers(0, 2**32 - 1)), first, inner, stride))
    return chosen


@st.composite
def any_step(draw: st.DrawFn) -> Step:
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=4))
    draw_number = draw(st.sampled_from([None, 0, 1, 2**32 - 1]))
    chosen = selection(draw_number, seed=draw(st.integers(0, 2**64 - 1)), acts_on=draw(selection_targets))
    if draw(st.booleans()):
        chosen = replace(chosen, rescaling=NO_RESCALING)
    return random_step(
        shapes,
        dtype=draw(st.sampled_from(DTYPES)),
        moment_dtype=draw(st.sampled_from(DTYPES)),
        score_dtype=draw(score_dtypes),
        positions=draw(st.one_of(st.none(), positions(shapes))),
        offset=draw(st.integers(0, 3)),
        steps=[draw(st.sampled_from([0, 1, 5, 1000, 2**24 - 1])) for _ in shapes],
        seed=draw(st.integers(0, 2**32)),
        lr=draw(st.sampled_from([0.0, 1e-3, 0.5])),
        beta1=draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.999])),
        beta2=draw(st.sampled_from([0.0, 0.9, 0.999])),
        optional=draw(optional_tensors),
        **draw(st.fixed_dictionaries(OPTION_STRATEGIES)),
        selection=draw(st.sampled_from([chosen, chosen, None])),
    )


@every_instruction_set
@given(arguments=any_step(), threads=st.sampled_from([1, 2]))
@settings(max_examples=2 * settings.default.max_examples)
def test_a_step_equals_the_reference_in_float64_to_rounding(
    instruction_set: str, arguments: Step, threads: int
) -> None:
    """Gradient, importance and step count exactly; parameters and moments as float32 arithmetic, rounded once."""
    before, expected = arguments.copy(values=torch.float64), arguments.copy(values=torch.float64).run(reference)
    with using(instruction_set, threads):
        arguments.run(native)
    assert_same_tensors(arguments, expected, [name for name in arguments.names if name not in VALUES])
    for i, (before_row, row, wanted) in enumerate(zip(before.rows, arguments.rows, expected.rows, strict=True)):
        for name, tolerance in tolerances(before_row, wanted, arguments.options).items():
            value, exact = getattr(row, name), getattr(wanted, name)
            stochastic = arguments.options.stochastic_rounding
            rounding = exact.abs() * torch.finfo(value.dtype).eps * (1.0 if stochastic else 0.5)
            difference = first_difference(value.double(), exact, tolerance + rounding)
            assert difference is None, f"{name} of parameter {i}: {difference}"


def tolerances(before: StepRow, after: StepRow, options: StepOptions) -> dict[str, Tensor]:
    """What float32 arithmetic may add to the error of the final rounding: a few roundings of every operand."""
    few = 8 * 2.0**-24
    step = float(after.step)
    seen = (after.exp_avg - options.beta1 * before.exp_avg).abs() / (1 - options.beta1)  # the selected gradient
    of_exp_avg = few * (before.exp_avg.abs() + seen) + 2.0**-126
    second_moment = after.exp_avg_sq if after.max_exp_avg_sq is None else after.max_exp_avg_sq
    denominator = (second_moment / (1 - options.beta2**step)).sqrt() + options.eps
    update = options.lr / (1 - options.beta1**step) * (of_exp_avg + few * after.exp_avg.abs()) / denominator
    squares = {name: getattr(after, name) for name in ("exp_avg_sq", "max_exp_avg_sq")}
    return {
        "param": few * sum(x.abs() for x in (before.param, before.pretrained) if x is not None) + update,
        "exp_avg": of_exp_avg,
        **{name: few * square + 2.0**-126 for name, square in squares.items() if square is not None},
    }


@given(arguments=any_step(), threads=st.sampled_from([2, 3]))
@settings(max_examples=settings.default.max_examples // 2)
def test_vector_instruction_sets_and_numbers_of_threads_give_the_same_bits(arguments: Step, threads: int) -> None:
    results = [arguments.copy() for name in INSTRUCTION_SETS if name != "portable" for _ in (1, threads)]
    for i, result in enumerate(results):
        with using(INSTRUCTION_SETS[i // 2], 1 if i % 2 == 0 else threads):
            result.run(native)
    for result in results[1:]:
        assert_same_tensors(result, results[0])


# --------------------------------------------------------------------------------------------------- extreme values

EXTREMES = (0.0, -0.0, 1e-45, -1e-40, 1e-30, 1.0, -1e19, 3e19, 2e38, -3e38, float("inf"), -float("inf"), float("nan"))


def extreme_gradients(dtype: torch.dtype, count: int = 333) -> Tensor:
    return torch.tensor(EXTREMES).repeat(count // len(EXTREMES) + 1)[:count].to(dtype)


@every_instruction_set
@every_dtype
def test_extreme_gradients_are_selected_and_accumulated_as_by_the_reference(
    instruction_set: str, dtype: torch.dtype
) -> None:
    arguments = random_step([(333,)], dtype=dtype, moment_dtype=dtype, beta1=0.5, selection=selection(alpha=0.9))
    arguments.change(
        grad=extreme_gradients(dtype),
        exp_avg=torch.zeros(333, dtype=dtype),
        importance=torch.tensor([0.0, 1.0, 3e38]).repeat(111),
    )
    expected = arguments.copy().run(reference)
    with using(instruction_set):
        arguments.run(native)
    assert_same_tensors(arguments, expected, ["importance"])
    # Half of the gradient that AdamW sees. Denormal numbers are zero in the first moment.
    halved = expected.rows[0].exp_avg
    halved[halved.abs() < torch.finfo(torch.float32).tiny] = 0
    torch.testing.assert_close(arguments.rows[0].exp_avg, halved, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(arguments.rows[0].param.isnan(), expected.rows[0].param.isnan())


@every_instruction_set
@every_dtype
def test_importance_alone_is_accumulated_as_by_the_reference(instruction_set: str, dtype: torch.dtype) -> None:
    gradients = [extreme_gradients(dtype, count) for count in (0, 1, 16, 333, 70_000)]
    importances = [torch.tensor([0.0, 1.0, 3e38]).repeat(25_000)[: len(gradient)].clone() for gradient in gradients]
    expected = [importance.clone() for importance in importances]
    reference.accumulate_importance_(expected, gradients)
    with using(instruction_set, 2):
        native.accumulate_importance_(importances, gradients)
    for importance, wanted in zip(importances, expected, strict=True):
        assert torch.equal(importance, wanted)


@every_instruction_set
def test_a_moment_that_only_decays_ends_at_zero_and_not_among_denormal_numbers(instruction_set: str) -> None:
    arguments = random_step([(40,)])
    arguments.change(grad=torch.zeros(40), exp_avg=torch.full((40,), 1e-37))
    with using(instruction_set):
        for _ in range(60):
            arguments.run(native)
            moment = arguments.rows[0].exp_avg
            assert ((moment == 0) | (moment.abs() >= torch.finfo(torch.float32).tiny)).all()
    assert (arguments.rows[0].exp_avg == 0).all()


@every_instruction_set
def test_not_a_number_stays_in_the_largest_second_moment(instruction_set: str) -> None:
    arguments = random_step([(40,)], optional=OPTIONAL)
    arguments.rows[0].max_exp_avg_sq[3] = float("nan")
    with using(instruction_set):
        arguments.run(native)
    assert arguments.rows[0].max_exp_avg_sq.isnan().nonzero().tolist() == [[3]]


# ------------------------------------------------------------------------------------------------- vectors and ranks


@every_instruction_set
def test_an_element_is_kept_iff_its_word_of_the_vectors_is_below_its_threshold(
    instruction_set: str, vectors: Any
) -> None:
    for case in vectors("draw"):
        words = torch.tensor([int(word, 16) for word in case["words"]])
        count = len(words)
        for above in (0, 1):
            thresholds = torch.ones(256, dtype=torch.int64)
            thresholds[:count] = words + above
            arguments = random_step(
                [(count,)],
                positions=[Position(case["parameter_id"], case["first_element"], count, 0)],
                selection=Selection(case["seed"], thresholds, NO_RESCALING, case["draw_number"]),
            )
            arguments.change(
                rank_code=torch.arange(count).to(torch.uint8), grad=torch.ones(count), exp_avg=torch.zeros(count)
            )
            with using(instruction_set):
                arguments.run(native)
            assert ((arguments.rows[0].exp_avg != 0) == bool(above)).all()


@every_instruction_set
def test_histogram_and_rank_codes_do_not_depend_on_the_number_of_threads(instruction_set: str) -> None:
    scores = [
        torch.randn(size, generator=torch.Generator().manual_seed(size)).exp() for size in (0, 7, 65_537, 200_000)
    ]
    scores.append(torch.zeros(100_003))
    table = (torch.arange(65_536) // 7 % 256).to(torch.uint8)
    results = []
    for threads in (1, 2, 5):
        counts, left = torch.ones(65_536, dtype=torch.int64), [score.clone() for score in scores]
        codes = [torch.empty_like(score, dtype=torch.uint8) for score in scores]
        with using(instruction_set, threads):
            native.histogram_(left, counts)
            assert all(map(torch.equal, left, scores))
            native.assign_rank_codes_(left, codes, table)
        assert not any(score.any() for score in left)
        results.append([counts, *codes])
    counts, codes = (
        torch.ones(65_536, dtype=torch.int64),
        [torch.empty_like(score, dtype=torch.uint8) for score in scores],
    )
    reference.histogram_(scores, counts)
    reference.assign_rank_codes_([score.clone() for score in scores], codes, table)
    for result in results:
        assert all(map(torch.equal, result, [counts, *codes]))
