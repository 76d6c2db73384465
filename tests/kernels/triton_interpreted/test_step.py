"""The fused step against the reference: masks and importance exactly, values to rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roast_optim.kernels import reference
from roast_optim.kernels.backend import Placement, Selection
from roast_optim.kernels.triton import launch, roast_adamw
from roast_optim.kernels.triton.roast_adamw import roast_adamw_
from tests.oracles import philox

BLOCK = launch.block_size(torch.device("cpu"))
CHUNK = BLOCK * launch.BLOCKS_PER_PROGRAM
# Rounding errors of a result that was rounded a few times.
RELATIVE_ERROR = {torch.float32: 2.0**-21, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}
OPTIONS: dict[str, Any] = {
    "lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False, "maximize": False,
    "capturable": False, "accumulate": True, "selection": None,
}  # fmt: skip


def selection(
    draw_number: int | None = None, *, alpha: float = 0.5, beta: float = 3.0, seed: int = 2**63 + 5
) -> Selection:
    thresholds = torch.from_numpy(philox.thresholds(alpha, beta).astype(np.int64))
    return Selection(seed, thresholds, torch.from_numpy(philox.rescaling_factors(alpha, beta).copy()), draw_number)


@dataclass
class Tensors:
    """The lists that a step takes."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    state_steps: list[Tensor]
    importances: list[Tensor]
    rank_codes: list[Tensor]
    placements: list[Placement]

    @classmethod
    def random(
        cls,
        shapes: list[tuple[int, ...]],
        param_dtype: torch.dtype = torch.float32,
        state_dtype: torch.dtype = torch.float32,
        offset: int = 0,
        seed: int = 0,
    ) -> Tensors:
        """Random contents; every tensor begins ``offset`` elements behind an aligned address."""
        generator = torch.Generator().manual_seed(seed)

        def make(shape: tuple[int, ...], dtype: torch.dtype, scale: float) -> Tensor:
            values = torch.randn(math.prod(shape) + offset, generator=generator) * scale
            return values.to(dtype)[offset:].view(shape)

        def codes(shape: tuple[int, ...]) -> Tensor:
            numel = math.prod(shape) + offset
            return torch.randint(256, (numel,), generator=generator).to(torch.uint8)[offset:].view(shape)

        return cls(
            [make(shape, param_dtype, 1.0) for shape in shapes],
            [make(shape, param_dtype, 0.1) for shape in shapes],
            [make(shape, state_dtype, 0.1) for shape in shapes],
            # bounded below, so that no update is much larger than the learning rate
            [make(shape, state_dtype, 0.01).abs() + 0.01 for shape in shapes],
            [make(shape, state_dtype, 0.01).abs() + 0.01 for shape in shapes],
            [torch.tensor(float(3 + i)) for i in range(len(shapes))],
            [make(shape, torch.float32, 1.0).abs() for shape in shapes],
            [codes(shape) for shape in shapes],
            [Placement.whole(i, math.prod(shape)) for i, shape in enumerate(shapes)],
        )

    def clone(self) -> Tensors:
        """A copy, aligned and contiguous."""
        lists = [[tensor.clone() for tensor in tensors] for tensors in list(vars(self).values())[:-1]]
        return Tensors(*lists, self.placements)

    def lists(self, amsgrad: bool) -> list[Any]:
        """The positional arguments of a step."""
        lists = list(vars(self).values())
        return [*lists[:4], lists[4] if amsgrad else [], *lists[5:]]


def assert_step_agrees(tensors: Tensors, **changes: Any) -> None:
    """One step of both backends on equal tensors."""
    options = {**OPTIONS, **changes}
    expected = tensors.clone()
    gradients = [gradient.clone() for gradient in tensors.grads]
    # The reference computes float32 pow of step tensors, which is less exact than what it stands for.
    reference.roast_adamw_(*expected.lists(options["amsgrad"]), **{**options, "capturable": False})
    roast_adamw_(*tensors.lists(options["amsgrad"]), **options)
    for gradient, before in zip(tensors.grads, gradients, strict=True):
        assert torch.equal(gradient, before)
    assert tensors.state_steps == expected.state_steps
    for name in ("importances", "rank_codes"):
        for actual, wanted in zip(getattr(tensors, name), getattr(expected, name), strict=True):
            assert torch.equal(actual, wanted), name
    for i, (param, wanted) in enumerate(zip(tensors.params, expected.params, strict=True)):
        error = RELATIVE_ERROR[param.dtype]
        torch.testing.assert_close(param, wanted, rtol=error, atol=float(options["lr"]) * 20 * error)
        for name in ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"):
            state, wanted_state = getattr(tensors, name)[i], getattr(expected, name)[i]
            error = max(RELATIVE_ERROR[param.dtype], RELATIVE_ERROR[state.dtype])
            if state.numel():
                torch.testing.assert_close(
                    state, wanted_state, rtol=error, atol=float(wanted_state.abs().max()) * error
                )


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
    tensors = Tensors.random(SHAPES, param_dtype, state_dtype, offset)
    assert_step_agrees(tensors, selection=selection(), amsgrad=True)


@settings(max_examples=settings.default.max_examples // 4)
@given(data=st.data())
def test_any_options(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    tensors = Tensors.random(shapes, offset=data.draw(st.integers(0, 3)), seed=data.draw(st.integers(0, 99)))
    assert_step_agrees(
        tensors,
        lr=data.draw(st.sampled_from([0.0, 1e-3, 1.0, torch.tensor(1e-2), torch.tensor(1e-2).double()])),
        beta1=data.draw(st.sampled_from([0.0, 0.5, 0.9, torch.tensor(0.9)])),
        beta2=data.draw(st.sampled_from([0.5, 0.9, 0.999])),
        eps=data.draw(st.sampled_from([1e-8, 1e-3])),
        weight_decay=data.draw(st.sampled_from([0.0, 0.1])),
        amsgrad=data.draw(st.booleans()),
        maximize=data.draw(st.booleans()),
        capturable=data.draw(st.booleans()),
        accumulate=data.draw(st.booleans()),
        selection=data.draw(st.sampled_from([None, selection(), selection(1), selection(2**31 + 7, seed=0)])),
    )


@pytest.mark.parametrize(
    "placement",
    [
        Placement(3, 0, 400, 0),
        Placement(3, 4, 400, 0),
        Placement(3, 1_001, 400, 0),
        Placement(3, 2**34 - 6, 400, 0),
        Placement(3, 40, 20, 100),
        Placement(3, 7, 1, 3),
        Placement(3, 2, 7, 11),
        Placement(2**31 + 1, 6, 399, 1_000),
    ],
    ids=str,
)
@pytest.mark.parametrize("numel", [400, BLOCK + 3])
def test_placements(placement: Placement, numel: int) -> None:
    if placement.inner_length == 400:
        placement = placement._replace(inner_length=numel)
    tensors = Tensors.random([(numel,)])
    tensors.placements = [placement]
    assert_step_agrees(tensors, selection=selection(), beta1=0.0)


def selected_gradient(gradient: Tensor, codes: Tensor, which: Selection) -> Tensor:
    """The gradient that AdamW sees: the first moment after a first step with beta1 = 0."""
    param, exp_avg, exp_avg_sq = (torch.zeros_like(gradient) for _ in range(3))
    place = Placement.whole(0, gradient.numel())
    options = {**OPTIONS, "beta1": 0.0, "accumulate": False, "selection": which}
    roast_adamw_(
        [param], [gradient], [exp_avg], [exp_avg_sq], [], [torch.tensor(0.0)], [], [codes], [place], **options
    )  # fmt: skip
    return exp_avg


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_selected_gradients_are_the_references_bit_for_bit(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    special = [0.0, -0.0, math.nan, math.inf, -math.inf, largest, -largest, largest / 3, -largest / 1e3, 1e-7, -1e-30]
    gradient = torch.tensor(special * 300, dtype=torch.float64).to(dtype)
    codes = torch.arange(gradient.numel()).remainder(256).to(torch.uint8)
    which = selection(alpha=0.5, beta=20.0)
    place = Placement.whole(0, gradient.numel())
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
    actual = selected_gradient(gradient, torch.zeros(256, dtype=torch.uint8), selection(alpha=1.0, beta=100.0))
    assert torch.equal(actual, torch.zeros(256))


def test_importance_saturates_and_takes_no_nonfinite_gradient() -> None:
    tensors = Tensors.random([(6,)])
    tensors.grads = [torch.tensor([math.nan, math.inf, -math.inf, 3e38, 1e-23, 2.0])]
    tensors.importances = [torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 3.4e38])]
    roast_adamw_(*tensors.lists(False), **OPTIONS)
    largest = torch.finfo(torch.float32).max
    expected = torch.tensor([1.0, 2.0, 3.0, largest, 1e-23 * 1e-23, 3.4e38])
    assert torch.equal(tensors.importances[0], expected)


@pytest.mark.parametrize("step", [0, 1, 9, 999, 99_999])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.5, 0.9), (0.9, 0.999), (0.999999, 0.9)], ids=str)
def test_bias_correction_loses_no_digits(step: int, capturable: bool, betas: tuple[float, float]) -> None:
    """From zero moments the update is lr (1 - b1) g / (1 - b1^t) over sqrt((1 - b2) g^2 / (1 - b2^t))."""
    beta1, beta2 = betas
    options = {"lr": 1.0, "beta1": beta1, "beta2": beta2, "eps": 0.0, "weight_decay": 0.0, "accumulate": False}
    param = torch.zeros(4)
    roast_adamw_(
        [param], [torch.ones(4)], [torch.zeros(4)], [torch.zeros(4)], [], [torch.tensor(float(step))], [], [],
        [Placement.whole(0, 4)], **{**OPTIONS, **options, "capturable": capturable},
    )  # fmt: skip

    def unbiased(beta: float) -> float:
        return (1 - beta) / -math.expm1((step + 1) * math.log(beta)) if beta else 1.0

    torch.testing.assert_close(
        param, torch.full((4,), -unbiased(beta1) / math.sqrt(unbiased(beta2))), rtol=1e-6, atol=0.0
    )


def test_a_subnormal_second_moment_does_not_count_as_zero() -> None:
    tensors = Tensors.random([(8,)])
    tensors.grads = [torch.full((8,), 1e-21)]
    tensors.exp_avgs, tensors.exp_avg_sqs = [torch.full((8,), 1e-21)], [torch.full((8,), 1e-42)]
    assert_step_agrees(tensors, eps=0.0)


def test_one_launch_serves_all_parameters_of_a_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = []

    class CountedTable(roast_adamw.PointerTable):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            tables.append(self)

    monkeypatch.setattr(roast_adamw, "PointerTable", CountedTable)
    tensors = Tensors.random([(size,) for size in range(1, 101)])
    roast_adamw_(*tensors.lists(False), **{**OPTIONS, "selection": selection()})
    assert [table.rows.numel() // table.columns for table in tables] == [100]


def test_what_is_not_contiguous_or_not_float_takes_the_reference() -> None:
    tensors = Tensors.random([(6, 5), (7,)])
    for name in ("params", "exp_avgs", "exp_avg_sqs", "importances", "rank_codes"):
        tensor_list = getattr(tensors, name)
        tensor_list[0] = tensor_list[0].T.contiguous().T
    assert_step_agrees(tensors, selection=selection())
    tensors = Tensors.random([(7,)])
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
        setattr(tensors, name, [tensor.double() for tensor in getattr(tensors, name)])
    expected = tensors.clone()
    reference.roast_adamw_(*expected.lists(False), **OPTIONS)
    roast_adamw_(*tensors.lists(False), **OPTIONS)
    assert torch.equal(tensors.params[0], expected.params[0])


def test_no_parameters_at_all() -> None:
    roast_adamw_([], [], [], [], [], [], [], [], [], **OPTIONS)


def test_tensors_that_do_not_fit_are_refused_before_anything_changes() -> None:
    tensors = Tensors.random([(4,), (5,)])
    before = tensors.clone()
    tensors.grads[1] = torch.zeros(6)
    with pytest.raises(ValueError, match=r"shape \(5,\) on cpu came with a tensor of shape \(6,\)"):
        roast_adamw_(*tensors.lists(False), **OPTIONS)
    tensors.grads[1] = torch.zeros(5, device="meta")
    with pytest.raises(ValueError, match="on meta"):
        roast_adamw_(*tensors.lists(False), **OPTIONS)
    tensors.grads[1] = before.grads[1]
    tensors.state_steps[1] = torch.zeros((), device="meta")
    with pytest.raises(ValueError, match="capturable=True with a step count on meta"):
        roast_adamw_(*tensors.lists(False), **{**OPTIONS, "capturable": True})
    assert torch.equal(tensors.params[0], before.params[0])
    assert tensors.state_steps[0] == before.state_steps[0]
