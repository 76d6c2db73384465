"""Which tensors the native code takes, which go to the reference, and what is refused before anything changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roast_optim.kernels import native, reference
from roast_optim.kernels.step import TENSORS, Position, StepOptions, StepRow
from tests.support.steps import OPTIONAL, Step, assert_same_tensors, random_step
from tests.support.steps import selection as usual_selection

SIZE = 50


def a_step(shapes: list[tuple[int, ...]], **options: Any) -> Step:
    return random_step(shapes, **{"selection": usual_selection(), **options})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parameters the reference was given, call by call."""
    counts: list[int] = []
    original = reference.roast_adamw_

    def count(rows: list[StepRow], options: StepOptions) -> None:
        counts.append(len(rows))
        original(rows, options)

    monkeypatch.setattr(reference, "roast_adamw_", count)
    return counts


def one_of_everything() -> Step:
    """Parameters that the native code takes, among parameters that it does not."""
    arguments = a_step([(SIZE,), (6, 8), (SIZE,), (SIZE,), (SIZE,), ()])
    arguments.rows[1].param = arguments.rows[1].param.T.contiguous().T
    for i, dtype in ((2, torch.float64), (3, torch.float16), (4, torch.bfloat16)):
        for name in ("param", "grad", "exp_avg", "exp_avg_sq"):
            setattr(arguments.rows[i], name, getattr(arguments.rows[i], name).to(dtype))
    return arguments


def test_tensors_that_do_not_suit_go_to_the_reference_and_only_they(counted: list[int]) -> None:
    arguments = one_of_everything()
    expected = arguments.copy().run(reference)
    counted.clear()
    arguments.run(native)
    assert counted == [3]
    for value, wanted in zip(arguments.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-6 if value.dtype == torch.float32 else 2e-2, atol=1e-6)
    for i in (1, 2, 3):
        assert torch.equal(arguments.rows[i].param, expected.rows[i].param)


def test_importance_histogram_and_codes_take_tensors_of_any_layout_and_dtype() -> None:
    gradients = [
        tensor
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
        for tensor in one_of_everything().column("grad")
    ]
    gradients = [gradient.T.contiguous().T if gradient.ndim == 2 else gradient for gradient in gradients]
    scores, expected = ([torch.ones(g.shape) for g in gradients] for _ in range(2))
    native.accumulate_importance_(scores, gradients)
    reference.accumulate_importance_(expected, gradients)
    assert all(map(torch.equal, scores, expected))
    scores.append(torch.rand(5, 9).T)
    counts = torch.zeros(131_072, dtype=torch.int64)[::2]  # not contiguous
    wanted = torch.zeros(65_536, dtype=torch.int64)
    native.histogram_(scores, counts)
    reference.histogram_(scores, wanted)
    assert torch.equal(counts, wanted)


def overlapping_parameters(arguments: Step) -> None:
    memory = torch.arange(2.0 * SIZE)
    arguments.rows[0].param, arguments.rows[1].param = memory[:SIZE], memory[10 : 10 + SIZE]


def a_gradient_that_is_its_parameter(arguments: Step) -> None:
    arguments.rows[0].grad = arguments.rows[0].param


def one_step_count_for_two_parameters(arguments: Step) -> None:
    arguments.rows[1].step = arguments.rows[0].step


@pytest.mark.parametrize(
    "change", [overlapping_parameters, a_gradient_that_is_its_parameter, one_step_count_for_two_parameters]
)
def test_memory_that_is_written_twice_goes_to_the_reference(change: Callable[[Step], None], counted: list[int]) -> None:
    results = []
    for backend in (native, reference):
        arguments = a_step([(SIZE,), (SIZE,)])
        change(arguments)
        results.append(arguments.run(backend))
    assert counted == [2, 2]
    assert_same_tensors(*results)


def test_two_parameters_may_share_a_gradient(counted: list[int]) -> None:
    arguments = a_step([(SIZE,), (SIZE,)])
    arguments.rows[1].grad = arguments.rows[0].grad
    arguments.run(native)
    assert counted == []


def test_a_gradient_that_is_negated_lazily_is_negated() -> None:
    arguments = a_step([(1,)])
    arguments.change(grad=torch.tensor([1 + 2j]).conj().imag)
    assert arguments.rows[0].grad.is_neg()
    expected = arguments.copy().run(reference)
    arguments.run(native)
    torch.testing.assert_close(arguments.rows[0].exp_avg, expected.rows[0].exp_avg)


@given(offsets=st.lists(st.integers(0, 63), min_size=len(TENSORS), max_size=len(TENSORS)), size=st.integers(1, 80))
@settings(max_examples=settings.default.max_examples // 3)
def test_tensors_may_begin_at_any_byte(offsets: list[int], size: int) -> None:
    arguments = a_step([(size,)])
    expected = arguments.copy().run(native)
    for (name, tensor), offset in zip(list(arguments.rows[0].tensors()), offsets, strict=False):
        buffer = bytearray(offset + tensor.nbytes)
        buffer[offset:] = tensor.numpy().tobytes()
        placed = torch.frombuffer(buffer, dtype=tensor.dtype, offset=offset).view(tensor.shape)
        setattr(arguments.rows[0], name, placed)
    arguments.run(native)
    assert_same_tensors(arguments, expected)


def test_capturable_goes_to_the_reference(counted: list[int]) -> None:
    arguments = a_step([(SIZE,)], capturable=True)
    expected = arguments.copy().run(reference)
    arguments.run(native)
    assert counted == [1, 1]
    assert_same_tensors(arguments, expected)


def test_learning_rate_and_betas_may_be_tensors(counted: list[int]) -> None:
    arguments = a_step([(SIZE,)], lr=0.25, beta1=0.5, beta2=0.75)
    tensors = arguments.copy()
    tensors.set(lr=torch.tensor(0.25), beta1=torch.tensor([0.5]), beta2=torch.tensor(0.75))
    assert_same_tensors(arguments.run(native), tensors.run(native))
    assert counted == []


def test_rows_need_not_have_what_is_not_used() -> None:
    full = a_step([(SIZE,)], accumulate=False, selection=None)
    bare = full.copy()
    for name in OPTIONAL:
        setattr(bare.rows[0], name, None)
    full.run(native)
    assert torch.equal(full.rows[0].param, bare.run(native).rows[0].param)
    native.roast_adamw_([], full.options)
    native.accumulate_importance_([], [])
    native.histogram_([], torch.zeros(65_536, dtype=torch.int64))
    native.assign_rank_codes_([], [], torch.zeros(65_536, dtype=torch.uint8))


def test_a_step_marks_parameters_as_changed_for_autograd() -> None:
    arguments = a_step([(SIZE,)])
    parameter = torch.nn.Parameter(arguments.rows[0].param)
    arguments.change(param=parameter)
    loss = (parameter * parameter).sum()
    with torch.no_grad():
        arguments.run(native)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ------------------------------------------------------------------------------------------------------------- refusals


def with_entry(table: Tensor, value: float) -> Tensor:
    changed = table.clone()
    changed[7] = value
    return changed


USUAL = usual_selection()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**64}, "selection.seed=18446744073709551616 must lie in"),
        ({"seed": -1}, "selection.seed=-1 must lie in"),
        ({"draw_number": 2**32}, "selection.draw_number=4294967296 must lie in"),
        ({"draw_number": -1}, "selection.draw_number=-1 must lie in"),
        ({"thresholds": with_entry(USUAL.thresholds, 0)}, "selection.thresholds must lie in"),
        ({"thresholds": with_entry(USUAL.thresholds, 2**32)}, "selection.thresholds must lie in"),
        ({"thresholds": USUAL.thresholds[:255]}, "selection.thresholds must be a contiguous torch.int64 tensor of 256"),
        ({"rescaling": with_entry(USUAL.rescaling, 0.0)}, "selection.rescaling must be positive and finite"),
        ({"rescaling": with_entry(USUAL.rescaling, float("inf"))}, "selection.rescaling must be positive and finite"),
        ({"rescaling": with_entry(USUAL.rescaling, float("nan"))}, "selection.rescaling must be positive and finite"),
        (
            {"rescaling": USUAL.rescaling.double()},
            "selection.rescaling must be a contiguous torch.float32 tensor of 256",
        ),
    ],
)
def test_an_impossible_selection_is_refused(changes: dict[str, Any], message: str) -> None:
    refused(a_step([(SIZE,), (SIZE,)], selection=usual_selection(**changes)), message)


@pytest.mark.parametrize(
    "position",
    [
        Position(2**32, 0, SIZE, 0),
        Position(-1, 0, SIZE, 0),
        Position(0, -1, SIZE, 0),
        Position(0, 0, 0, 0),
        Position(0, 0, -5, 0),
        Position(0, 0, SIZE, -1),
        Position(0, 2**63 - SIZE, SIZE, 0),
        Position(0, 0, 1, 2**62),
        Position(0, 2**62, 10, 2**60),
    ],
)
def test_an_impossible_position_is_refused(position: Position) -> None:
    whole = Position.whole(0, SIZE)
    refused(a_step([(SIZE,), (SIZE,)], positions=[whole, position]), "a position is impossible")


def test_the_last_possible_position_is_accepted() -> None:
    last = Position(2**32 - 1, 2**63 - 1 - SIZE, SIZE, 0)
    a_step([(SIZE,)], positions=[last]).run(native)


@pytest.mark.parametrize("count", [-1.0, float("nan"), float("inf"), 2.0**63])
def test_an_impossible_step_count_is_refused(count: float) -> None:
    arguments = a_step([(SIZE,), (SIZE,)])
    arguments.rows[1].step = torch.tensor(count)
    refused(arguments, "a step count is negative or too large")


@pytest.mark.parametrize("name", OPTIONAL)
def test_rows_with_different_tensors_are_refused(name: str) -> None:
    arguments = a_step([(SIZE,), (SIZE,)], optional=OPTIONAL)
    setattr(arguments.rows[1], name, None)
    refused(arguments, f"rows of a step must have the same tensors; row 0 has {name}, row 1 has none")


@pytest.mark.parametrize(("name", "option"), [("importance", "accumulate=True"), ("rank_code", "a selection")])
def test_options_that_need_what_the_rows_lack_are_refused(name: str, option: str) -> None:
    refused(a_step([(SIZE,)], optional=set(OPTIONAL) - {name}), rf"{option} needs rows with {name}")


def refused(arguments: Step, message: str) -> None:
    before = arguments.copy()
    with pytest.raises(ValueError, match=message):
        arguments.run(native)
    assert_same_tensors(arguments, before)


# ------------------------------------------------------------------------------------------------ what is said of them


def noted(step: Step, grads: list[Tensor] | None = None) -> list[str]:
    """The fallbacks of a plan after a step."""
    plan = native.plan(step.rows)
    plan.step(step.column("grad") if grads is None else grads, step.options)
    return plan.fallbacks


def transposed(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous().T


@pytest.mark.parametrize("name", ["param", "exp_avg", "importance", "rank_code"])
def test_a_tensor_that_is_not_contiguous_is_named_with_a_cure(name: str) -> None:
    step = a_step([(SIZE,), (6, 8)])
    setattr(step.rows[1], name, transposed(getattr(step.rows[1], name)))
    (reason,) = noted(step)
    assert reason.startswith(f"{name} is not contiguous")
    assert "make the parameters contiguous" in reason


def test_a_gradient_that_is_not_contiguous_is_said_of() -> None:
    step = a_step([(SIZE,), (6, 8)])
    step.rows[1].grad = transposed(step.rows[1].grad)
    assert noted(step) == ["a gradient is not contiguous: call contiguous() on it before the step"]


def test_overlapping_tensors_and_capturable_are_said_of() -> None:
    step = a_step([(SIZE,)])
    step.change(exp_avg_sq=step.rows[0].exp_avg)
    (reason,) = noted(step)
    assert "overlap in memory" in reason
    (reason,) = noted(a_step([(SIZE,)], capturable=True))
    assert "capturable=True serves CUDA graphs" in reason


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float32, torch.bfloat16], ids=str)
def test_nothing_is_said_of_what_is_as_fast_as_it_can_be(dtype: torch.dtype) -> None:
    assert noted(a_step([(SIZE,), (6, 8)], dtype=dtype, moment_dtype=dtype)) == []
