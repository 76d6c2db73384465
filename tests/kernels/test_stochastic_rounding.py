"""Stochastic rounding on every backend: the oracle's bits where the arithmetic is exact, and what they promise."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from roast_optim.kernels import reference
from roast_optim.kernels.step import Position
from tests.oracles import philox, ranks, rounding
from tests.support.devices import BACKENDS, on_device
from tests.support.differences import first_difference
from tests.support.instruction_sets import INSTRUCTION_SETS, using
from tests.support.snapshot import assert_same_bits
from tests.support.steps import Step, random_step, selection

FORMATS = {torch.bfloat16: rounding.BFLOAT16, torch.float16: rounding.FLOAT16}
SEED, STEPS = 2**63 + 11, 41
every_dtype = pytest.mark.parametrize("dtype", FORMATS, ids=str)
# Native on each instruction set of this machine.
every_machine = pytest.mark.parametrize(
    ("backend", "instruction_set"),
    [(name, one) for name in BACKENDS for one in (INSTRUCTION_SETS if name == "native" else [None])],
)
POSITIONS = [
    Position.whole(3, 65536),
    Position(2**32 - 1, 5, 65536, 0),
    Position(0, 2**34 - 6, 65536, 0),
    Position(7, 2**62 + 1, 65536, 0),
    Position(3, 6, 7, 11),
    Position(3, 40, 4096, 100_000),
]


def every_number(dtype: torch.dtype) -> Tensor:
    """All 65,536 bit patterns of a dtype, in random order."""
    patterns = torch.randperm(65536, generator=torch.Generator().manual_seed(3)) - 32768
    return patterns.to(torch.int16).view(dtype)


def elements(position: Position, count: int) -> npt.NDArray[np.uint64]:
    """The index in the whole parameter of every local element."""
    local = np.arange(count, dtype=np.uint64)
    inner, stride = np.uint64(position.inner_length), np.uint64(position.outer_stride)
    return np.uint64(position.first_index) + local // inner * stride + local % inner


def bits(position: Position, count: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    return rounding.bits_of_step(SEED, position.parameter_id, STEPS + 1, elements(position, count))


def a_step(dtype: torch.dtype, position: Position, tensors: dict[str, Tensor], **options: Any) -> Step:
    """A step without gradients whose products with powers of two and their neighbours are exact in float32."""
    zeros = torch.zeros(65536, dtype=dtype)
    step = random_step(
        [(65536,)], dtype=dtype, moment_dtype=dtype, positions=[position], steps=STEPS, accumulate=False,
        **{"stochastic_rounding": True, "rounding_seed": SEED, "weight_decay": 0.0, **options},
    )  # fmt: skip
    step.change(**{"grad": zeros, "exp_avg": zeros.clone(), **tensors})
    return step


def run(step: Step, backend: str, instruction_set: str | None) -> Step:
    with using(instruction_set) if instruction_set else nullcontext():
        return step.run(on_device(backend))


def assert_same_numbers(actual: Tensor, expected: npt.NDArray[np.floating]) -> None:
    difference = first_difference(actual.double(), torch.from_numpy(expected))
    assert difference is None, difference


@every_dtype
@every_machine
@pytest.mark.parametrize("weight_decay", [2.0**-9, 0.25, -(2.0**-9), -1.0], ids=["less", "least", "more", "most"])
def test_every_parameter_is_rounded_as_by_the_oracle(
    weight_decay: float, backend: str, instruction_set: str | None, dtype: torch.dtype
) -> None:
    """Times 1 - 2**-10, 7/8, 1 + 2**-10 or 3/2, by which the largest numbers come to lie beyond the largest."""
    position, param = POSITIONS[0], every_number(dtype)
    exact = param.double().numpy() * (1 - 0.5 * weight_decay)
    step = a_step(dtype, position, {"param": param.clone()}, lr=0.5, weight_decay=weight_decay)
    run(step, backend, instruction_set)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = rounding.stochastically_rounded(exact, bits(position, 65536)[0], FORMATS[dtype])
    assert_same_numbers(step.rows[0].param, expected)


@every_dtype
@every_machine
@pytest.mark.parametrize("position", POSITIONS, ids=str)
def test_the_bits_are_those_of_the_element_in_the_whole_parameter(
    position: Position, backend: str, instruction_set: str | None, dtype: torch.dtype
) -> None:
    param = torch.randn(65536, generator=torch.Generator().manual_seed(0)).to(dtype)
    square = (param * param + 0.5).to(dtype)
    for masks in (None, selection(seed=5)):
        tensors = {"param": param.clone(), "exp_avg_sq": square.clone()}
        step = a_step(
            dtype, position, tensors, lr=0.5, weight_decay=2.0**-9, beta2=1 - 2.0**-10, selection=masks,
        )  # fmt: skip
        run(step, backend, instruction_set)
        own, of_state = bits(position, 65536)
        for name, before, its_bits in (("param", param, own), ("exp_avg_sq", square, of_state)):
            exact = before.double().numpy() * (1 - 2.0**-10)
            expected = rounding.stochastically_rounded(exact, its_bits, FORMATS[dtype])
            assert_same_numbers(getattr(step.rows[0], name), expected)


@every_dtype
@every_machine
@pytest.mark.parametrize("count", [2**24, 2**33], ids=["that grows by two", "beyond 32 bits"])
def test_the_bits_follow_step_counts_of_any_size(
    count: int, backend: str, instruction_set: str | None, dtype: torch.dtype
) -> None:
    param = torch.randn(65536, generator=torch.Generator().manual_seed(0)).to(dtype)
    step = a_step(dtype, POSITIONS[0], {"param": param.clone()}, lr=0.5, weight_decay=2.0**-9)
    step.rows[0].step.fill_(count)
    run(step, backend, instruction_set)
    counted = int(step.rows[0].step)
    assert count < counted <= count + 1024
    its_bits, _ = rounding.bits_of_step(SEED, 3, counted % 2**32, np.arange(65536))
    exact = param.double().numpy() * (1 - 2.0**-10)
    expected = rounding.stochastically_rounded(exact, its_bits, FORMATS[dtype])
    assert_same_numbers(step.rows[0].param, expected)


@every_dtype
@every_machine
def test_the_first_moment_is_rounded_as_by_the_oracle(
    backend: str, instruction_set: str | None, dtype: torch.dtype
) -> None:
    moment = torch.randn(65536, generator=torch.Generator().manual_seed(0)).to(dtype)
    step = a_step(dtype, POSITIONS[0], {"exp_avg": moment.clone()}, lr=0.0, beta1=1 - 2.0**-10)
    run(step, backend, instruction_set)
    exact = moment.double().numpy() * (1 - 2.0**-10)
    expected = rounding.stochastically_rounded(exact, bits(POSITIONS[0], 65536)[1], FORMATS[dtype])
    assert_same_numbers(step.rows[0].exp_avg, expected)


@every_machine
@pytest.mark.parametrize("position", POSITIONS, ids=str)
def test_importance_of_bfloat16_is_rounded_as_by_the_oracle(
    position: Position, backend: str, instruction_set: str | None
) -> None:
    scores = every_number(torch.bfloat16).abs()
    scores[~scores.isfinite()] = 1.0
    step = random_step(
        [(65536,)], score_dtype=torch.bfloat16, positions=[position], steps=STEPS, rounding_seed=SEED, selection=None
    )
    step.change(importance=scores.clone(), grad=step.rows[0].grad * scores.float().sqrt())
    total = ranks.accumulated(scores.float().numpy(), step.rows[0].grad.numpy(), rounding.BFLOAT16.largest)
    run(step, backend, instruction_set)
    expected = rounding.stochastically_rounded(total, bits(position, 65536)[1], rounding.BFLOAT16)
    assert_same_numbers(step.rows[0].importance, expected)
    assert step.rows[0].importance.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_importance_of_bfloat16_outside_of_a_step_is_rounded_as_by_the_oracle(
    device_backend: str, dtype: torch.dtype
) -> None:
    scores = [every_number(torch.bfloat16).abs(), torch.ones(4, 6, dtype=torch.bfloat16).T]
    scores[0][~scores[0].isfinite()] = 1.0
    gradients = [torch.randn(score.shape, generator=torch.Generator().manual_seed(1)).to(dtype) for score in scores]
    gradients[0][:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    before = [score.float().numpy() for score in scores]
    on_device(device_backend).accumulate_importance_(scores, gradients)
    for score, old, gradient in zip(scores, before, gradients, strict=True):
        g = gradient.float().numpy()
        total = ranks.accumulated(old, g, rounding.BFLOAT16.largest)
        expected = rounding.stochastically_rounded(total, rounding.bits_of_measured(g, old), rounding.BFLOAT16)
        assert_same_numbers(score, expected)


def test_histogram_and_rank_codes_of_bfloat16_scores_are_those_of_float32(device_backend: str) -> None:
    kernels, table = on_device(device_backend), (torch.arange(65536) // 7 % 256).to(torch.uint8)
    wide = [torch.randn(n, generator=torch.Generator().manual_seed(n)).mul(9).exp().bfloat16() for n in (70_001, 5, 0)]
    wide = [score.float() for score in (*wide, torch.zeros(1000), torch.rand(6, 5).bfloat16().T)]
    found = []
    for scores in (wide, [score.bfloat16() for score in wide]):
        counts = torch.ones(65536, dtype=torch.int64)
        kernels.histogram_(scores, counts)
        codes = [torch.zeros(score.shape, dtype=torch.uint8) for score in scores]
        left = [score.clone() for score in scores]
        kernels.assign_rank_codes_(left, codes, table)
        assert not any(score.any() for score in left)
        found.append([counts, *codes])
    for tensor, expected in zip(found[1], found[0], strict=True):
        assert_same_bits(tensor, expected)


def test_a_shard_is_rounded_as_the_whole(device_backend: str) -> None:
    whole = random_step(
        [(24, 40)], dtype=torch.bfloat16, moment_dtype=torch.bfloat16, score_dtype=torch.bfloat16,
        stochastic_rounding=True, rounding_seed=SEED, selection=selection(),
    )  # fmt: skip
    columns = whole.copy()
    row = columns.rows[0]
    for name, tensor in [*row.tensors()]:
        if name != "step":
            setattr(row, name, tensor[:, 9:22].contiguous())
    row.position = Position(0, 9, 13, 40)
    for step in (whole, columns):
        step.run(on_device(device_backend))
    for name, tensor in row.tensors():
        expected = getattr(whole.rows[0], name)
        assert_same_bits(tensor, expected if name == "step" else expected[:, 9:22].contiguous(), name)


def test_without_it_nothing_depends_on_its_seed_and_float32_does_not_with_it(device_backend: str) -> None:
    for dtype, stochastic in ((torch.bfloat16, False), (torch.float32, True)):
        steps = [
            random_step([(5000,)], dtype=dtype, moment_dtype=dtype, selection=selection(), **options)
            for options in ({}, {"stochastic_rounding": stochastic, "rounding_seed": 2**64 - 1})
        ]
        for step in steps:
            step.run(on_device(device_backend))
        for name, tensor in steps[0].rows[0].tensors():
            assert_same_bits(getattr(steps[1].rows[0], name), tensor, name)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused_before_anything_changes(seed: int, device_backend: str) -> None:
    step = random_step([(5,)], stochastic_rounding=True, rounding_seed=seed)
    before = step.rows[0].param.clone()
    with pytest.raises(ValueError, match=rf"rounding_seed={seed} must lie in \[0, 2\*\*64\)"):
        step.run(on_device(device_backend))
    assert_same_bits(step.rows[0].param, before)


# --------------------------------------------------------------------------------------------------------- statistics


@every_dtype
def test_the_mean_of_many_rounded_updates_is_the_update(dtype: torch.dtype, device_backend: str) -> None:
    """Of equal elements in one step, and of the same elements in many; from 1 down by less than half a unit."""
    decay, numel = 2.0**-14 * 3, 65536
    unit = torch.finfo(dtype).eps / 2
    share = decay / unit
    assert 0 < share < 0.5
    standard_error = unit * (share * (1 - share) / numel) ** 0.5
    step = a_step(dtype, POSITIONS[0], {"param": torch.ones(numel, dtype=dtype)}, lr=1.0, weight_decay=decay)
    step.run(on_device(device_backend))
    assert abs(float(1 - step.rows[0].param.double().mean()) - decay) <= 4 * standard_error

    count, steps = 1024, 100
    moved = torch.zeros(count, dtype=torch.float64)
    step = random_step(
        [(count,)], dtype=dtype, moment_dtype=dtype, lr=1.0, weight_decay=decay, optional=(), accumulate=False,
        stochastic_rounding=True,
    )  # fmt: skip
    zeros = torch.zeros(count, dtype=dtype)
    for _ in range(steps):
        step.change(param=torch.ones(count, dtype=dtype), grad=zeros, exp_avg=zeros.clone())
        moved += 1 - step.run(on_device(device_backend)).rows[0].param.double()
    of_element = unit * (share * (1 - share) / steps) ** 0.5
    assert abs(float(moved.mean()) / steps - decay) <= 4 * of_element / count**0.5
    # The variance of a mean of independent steps, which has a relative standard error of sqrt(2 / count).
    assert abs(float((moved / steps).var()) / of_element**2 - 1) <= 4 * (2 / count) ** 0.5


@pytest.mark.parametrize("position", POSITIONS, ids=str)
def test_the_reference_draws_the_bits_of_the_oracle(position: Position) -> None:
    for start, count in ((0, 1000), (5, 1), (40_003, 999)):
        drawn = reference.draw_halves(
            position, start, count, seed=SEED, draw_number=STEPS + 1, device=torch.device("cpu")
        )
        expected = bits(position, start + count)[0][start:]
        np.testing.assert_array_equal(drawn.numpy().astype(np.uint64), expected)


def test_the_bits_are_independent_of_the_masks_of_other_steps_and_of_neighbours() -> None:
    count, seed = 200_000, 12345
    own, of_state = rounding.bits_of_step(seed, 0, 3, np.arange(count))
    series = [philox.random_words(seed, 0, 3, np.arange(count)), rounding.bits_of_step(seed, 0, 4, np.arange(count))[0]]
    for number in (own, of_state):
        every = [number, *series, *(np.roll(number, shift) for shift in range(1, 8))]
        correlations = np.corrcoef(np.array(every, dtype=np.float64))
        assert (np.abs(correlations[0, 1:]) <= 4.5 / count**0.5).all()
        shares = np.bincount(number.astype(np.int64) >> 8, minlength=256) / count
        assert (np.abs(shares - 1 / 256) <= 4.5 * (1 / 256 / count) ** 0.5).all()


def test_rounding_a_parameter_hardly_depends_on_rounding_its_state() -> None:
    """Of all 65,536 numbers, by themselves and with their bytes exchanged, against limits all over their range."""
    every = np.arange(65536)
    exchanged = every // 256 + every % 256 * 256
    limits = 65536 * np.arange(1, 32) // 32 + 77
    both = np.array([[np.mean((every < own) & (exchanged < other)) for other in limits] for own in limits])
    assert np.abs(both - np.outer(limits, limits) / 65536**2).max() <= 2.0**-8
