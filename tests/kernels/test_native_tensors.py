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
from roast_optim.kernels.backend import Placement, Selection
from tests.kernels.native_steps import StepArguments, selection, step_arguments

SIZE = 50


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parameters the reference was given, call by call."""
    counts: list[int] = []
    original = reference.roast_adamw_

    def count(params: list[Tensor], *args: Any, **options: Any) -> None:
        counts.append(len(params))
        original(params, *args, **options)

    monkeypatch.setattr(reference, "roast_adamw_", count)
    return counts


def one_of_everything() -> StepArguments:
    """Parameters that the native code takes, among parameters that it does not."""
    arguments = step_arguments([(SIZE,), (6, 8), (SIZE,), (SIZE,), (SIZE,), ()])
    arguments.params[1] = arguments.params[1].T.contiguous().T
    for tensors in (arguments.params, arguments.grads, arguments.exp_avgs, arguments.exp_avg_sqs):
        tensors[2] = tensors[2].double()
        tensors[3] = tensors[3].half()
        tensors[4] = tensors[4].bfloat16()
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
        assert torch.equal(arguments.params[i], expected.params[i])


def test_importance_histogram_and_codes_take_tensors_of_any_layout_and_dtype() -> None:
    gradients = [
        tensor for dtype in (torch.float32, torch.float64, torch.bfloat16) for tensor in one_of_everything().grads
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


def overlapping_parameters(arguments: StepArguments) -> None:
    memory = torch.arange(2.0 * SIZE)
    arguments.params = [memory[:SIZE], memory[10 : 10 + SIZE]]


def a_gradient_that_is_its_parameter(arguments: StepArguments) -> None:
    arguments.grads[0] = arguments.params[0]


def one_step_count_for_two_parameters(arguments: StepArguments) -> None:
    arguments.state_steps[1] = arguments.state_steps[0]


@pytest.mark.parametrize(
    "change", [overlapping_parameters, a_gradient_that_is_its_parameter, one_step_count_for_two_parameters]
)
def test_memory_that_is_written_twice_goes_to_the_reference(
    change: Callable[[StepArguments], None], counted: list[int]
) -> None:
    results = []
    for backend in (native, reference):
        arguments = step_arguments([(SIZE,), (SIZE,)])
        change(arguments)
        results.append(arguments.run(backend))
    assert counted == [2, 2]
    assert all(map(torch.equal, results[0].tensors(), results[1].tensors()))


def test_two_parameters_may_share_a_gradient(counted: list[int]) -> None:
    arguments = step_arguments([(SIZE,), (SIZE,)])
    arguments.grads[1] = arguments.grads[0]
    arguments.run(native)
    assert counted == []


def test_a_gradient_that_is_negated_lazily_is_negated() -> None:
    arguments = step_arguments([(1,)])
    arguments.grads = [torch.tensor([1 + 2j]).conj().imag]
    assert arguments.grads[0].is_neg()
    expected = arguments.copy().run(reference)
    arguments.run(native)
    torch.testing.assert_close(arguments.exp_avgs[0], expected.exp_avgs[0])


@given(offsets=st.lists(st.integers(0, 63), min_size=7, max_size=7), size=st.integers(1, 80))
@settings(max_examples=settings.default.max_examples // 3)
def test_tensors_may_begin_at_any_byte(offsets: list[int], size: int) -> None:
    arguments = step_arguments([(size,)])
    expected = arguments.copy().run(native)
    for tensors, offset in zip(arguments.lists()[:-1], offsets, strict=False):
        buffer = bytearray(offset + tensors[0].nbytes)
        buffer[offset:] = tensors[0].numpy().tobytes()
        tensors[0] = torch.frombuffer(buffer, dtype=tensors[0].dtype, offset=offset).view(tensors[0].shape)
    arguments.run(native)
    assert all(map(torch.equal, arguments.tensors(), expected.tensors()))


def test_capturable_goes_to_the_reference(counted: list[int]) -> None:
    arguments = step_arguments([(SIZE,)], capturable=True)
    expected = arguments.copy().run(reference)
    arguments.run(native)
    assert counted == [1, 1]
    assert all(map(torch.equal, arguments.tensors(), expected.tensors()))


def test_learning_rate_and_betas_may_be_tensors(counted: list[int]) -> None:
    arguments = step_arguments([(SIZE,)], lr=0.25, beta1=0.5, beta2=0.75)
    tensors = arguments.copy()
    tensors.options.update(lr=torch.tensor(0.25), beta1=torch.tensor([0.5]), beta2=torch.tensor(0.75))
    assert all(map(torch.equal, arguments.run(native).tensors(), tensors.run(native).tensors()))
    assert counted == []


def test_lists_of_what_is_not_used_may_be_empty() -> None:
    full = step_arguments([(SIZE,)], accumulate=False, selection=None)
    bare = full.copy()
    bare.max_exp_avg_sqs, bare.importances, bare.rank_codes, bare.placements = [], [], [], []
    full.run(native)
    assert torch.equal(full.params[0], bare.run(native).params[0])
    native.roast_adamw_(*([[]] * 9), **full.options)
    native.accumulate_importance_([], [])
    native.histogram_([], torch.zeros(65_536, dtype=torch.int64))
    native.assign_rank_codes_([], [], torch.zeros(65_536, dtype=torch.uint8))


def test_a_step_marks_parameters_as_changed_for_autograd() -> None:
    arguments = step_arguments([(SIZE,)])
    parameter = torch.nn.Parameter(arguments.params[0])
    arguments.params = [parameter]
    loss = (parameter * parameter).sum()
    with torch.no_grad():
        arguments.run(native)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ------------------------------------------------------------------------------------------------------------- refusals


def changed_selection(**changes: Any) -> Selection:
    usual = selection()
    fields = {name: getattr(usual, name) for name in ("seed", "thresholds", "rescaling", "draw_number")}
    return Selection(**{**fields, **changes})


def with_entry(table: Tensor, value: float) -> Tensor:
    changed = table.clone()
    changed[7] = value
    return changed


USUAL = selection()


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
    refused(step_arguments([(SIZE,), (SIZE,)], selection=changed_selection(**changes)), message)


@pytest.mark.parametrize(
    "placement",
    [
        Placement(2**32, 0, SIZE, 0),
        Placement(-1, 0, SIZE, 0),
        Placement(0, -1, SIZE, 0),
        Placement(0, 0, 0, 0),
        Placement(0, 0, -5, 0),
        Placement(0, 0, SIZE, -1),
        Placement(0, 2**63 - SIZE, SIZE, 0),
        Placement(0, 0, 1, 2**62),
        Placement(0, 2**62, 10, 2**60),
    ],
)
def test_an_impossible_placement_is_refused(placement: Placement) -> None:
    whole = Placement.whole(0, SIZE)
    refused(step_arguments([(SIZE,), (SIZE,)], placements=[whole, placement]), "a placement is impossible")


def test_the_last_possible_placement_is_accepted() -> None:
    last = Placement(2**32 - 1, 2**63 - 1 - SIZE, SIZE, 0)
    step_arguments([(SIZE,)], placements=[last]).run(native)


@pytest.mark.parametrize("count", [-1.0, float("nan"), float("inf"), 2.0**32])
def test_an_impossible_step_count_is_refused(count: float) -> None:
    arguments = step_arguments([(SIZE,), (SIZE,)])
    arguments.state_steps[1] = torch.tensor(count)
    refused(arguments, "a step count is negative or too large")


def test_lists_of_unequal_length_are_refused() -> None:
    arguments = step_arguments([(SIZE,), (SIZE,)])
    arguments.rank_codes.pop()
    refused(arguments, r"lists of equal length.*\[2, 2, 2, 2, 2, 2, 1, 2\]")


def refused(arguments: StepArguments, message: str) -> None:
    before = arguments.copy()
    with pytest.raises(ValueError, match=message):
        arguments.run(native)
    for value, wanted in zip(arguments.tensors(), before.tensors(), strict=True):
        assert torch.equal(value.nan_to_num(), wanted.nan_to_num())
