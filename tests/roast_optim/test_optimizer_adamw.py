"""Without selection RoastAdamW is torch.optim.AdamW(foreach=False), bit for bit."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from roast_optim import RoastAdamW
from tests.support.layouts import Layout, transposed, unaligned, unchanged, with_gaps
from tests.support.snapshot import assert_same_bits

SHAPES = [(17, 5), (), (0, 3), (1,), (2, 3, 4), (1031,)]
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def make_parameters(dtype: torch.dtype, shapes: list[tuple[int, ...]], layout: Layout) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [torch.nn.Parameter(layout(value)) for value in values]


def assert_equals_adamw(
    dtype: torch.dtype,
    steps: int,
    adamw_options: dict[str, Any],
    roast_options: dict[str, Any],
    *,
    shapes: list[tuple[int, ...]] = SHAPES,
    layout: Layout = unchanged,
    group_options: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
    schedule: bool = False,
    gradient_scale: float = 1.0,
) -> None:
    """Parameters and moments are equal, bit for bit, after every step."""
    ours, theirs = make_parameters(dtype, shapes, layout), make_parameters(dtype, shapes, layout)
    optimizers: list[torch.optim.Optimizer] = []
    half = len(shapes) // 2
    for kind, parameters, options in (
        (RoastAdamW, ours, {**adamw_options, **roast_options, "backend": "reference"}),
        (torch.optim.AdamW, theirs, {**adamw_options, "foreach": False}),
    ):
        groups = [
            {"params": part, **of_group}
            for part, of_group in zip((parameters[:half], parameters[half:]), group_options, strict=True)
            if part
        ]
        optimizers.append(kind(groups, **options))
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 10, 1.0) * 0.98**step)
        for optimizer in (optimizers if schedule else [])
    ]
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(a.shape, generator=generator, dtype=torch.float64) * gradient_scale
            missing = step % 5 == 2 and index % 2 == 0
            a.grad = b.grad = None if missing else layout(gradient.to(dtype))
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same_bits(a.detach(), b.detach(), f"parameter {i}")
            for moment in MOMENTS:
                assert (moment in optimizers[0].state[a]) == (moment in optimizers[1].state[b])
                if moment in optimizers[1].state[b]:
                    found = [each.state[param][moment] for each, param in zip(optimizers, (a, b), strict=True)]
                    assert_same_bits(*found, f"{moment} of parameter {i}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_adamw_bit_for_bit(dtype: torch.dtype, amsgrad: bool, maximize: bool, weight_decay: float) -> None:
    assert_equals_adamw(
        dtype,
        50,
        {"lr": 1e-2, "amsgrad": amsgrad, "maximize": maximize, "weight_decay": weight_decay},
        {"selective": False},
        group_options=({"lr": 3e-3}, {}),
        schedule=True,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": torch.tensor(2e-3)},
        {"betas": (0.0, 0.0)},
        {"betas": (0.5, 0.9), "eps": 1e-3},
        {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "lr": torch.tensor(1e-2)},
        {"eps": 0.0},
        {"lr": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_adamw_for_every_option_it_takes_from_it(options: dict[str, Any], dtype: torch.dtype) -> None:
    assert_equals_adamw(dtype, 10, options, {"selective": False})


def test_equals_adamw_in_float16() -> None:
    assert_equals_adamw(torch.float16, 20, {"lr": 1e-2, "eps": 1e-4}, {"selective": False})


@pytest.mark.parametrize("layout", [transposed, with_gaps, unaligned])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_adamw_in_every_memory_layout(layout: Layout, dtype: torch.dtype) -> None:
    assert_equals_adamw(dtype, 10, {"amsgrad": True}, {"selective": False}, layout=layout)


@pytest.mark.parametrize("layout", [unchanged, transposed, with_gaps, unaligned])
@pytest.mark.parametrize("shape", [(600_007,), (523, 1_031), (3, 262_147)], ids=str)
def test_equals_adamw_on_parameters_of_several_chunks(layout: Layout, shape: tuple[int, ...]) -> None:
    assert_equals_adamw(torch.float32, 3, {"weight_decay": 0.1}, {"selective": False}, shapes=[shape], layout=layout)


@pytest.mark.parametrize("refresh_every", [None, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_adamw_until_the_first_refresh(dtype: torch.dtype, refresh_every: int | None) -> None:
    assert_equals_adamw(dtype, 19, {"lr": 1e-2, "amsgrad": True}, {"selective": True, "refresh_every": refresh_every})


def test_without_selection_a_refresh_changes_nothing_and_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equals_adamw(torch.float32, 20, {}, {"selective": False, "refresh_every": 5})


def test_non_finite_gradients_are_handled_as_by_adamw() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert_equals_adamw(torch.float32, 3, {}, {"selective": True}, gradient_scale=bad)


# ------------------------------------------------------------------------------------------------------- state_dtype


@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
def test_state_dtype_computes_in_the_wider_dtype_and_rounds_once(dtype: torch.dtype, state_dtype: torch.dtype) -> None:
    """AdamW on wide copies, with what is stored narrower rounded after every step, gives the same bits."""
    wide = torch.promote_types(dtype, state_dtype)
    ours = make_parameters(dtype, [(31, 7), ()], unchanged)
    theirs = [torch.nn.Parameter(p.detach().to(wide)) for p in ours]
    options: dict[str, Any] = {"lr": 1e-2, "amsgrad": True, "weight_decay": 0.1}
    roast = RoastAdamW(ours, state_dtype=state_dtype, backend="reference", selective=False, **options)
    adamw = torch.optim.AdamW(theirs, foreach=False, **options)
    for step in range(10):
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(10 * step + index)).to(dtype)
            b.grad = a.grad.to(wide)
        roast.step()
        adamw.step()
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            b.data = b.data.to(dtype).to(wide)
            assert_same_bits(a.detach().to(wide), b.detach(), f"parameter {i}")
            for moment in MOMENTS[1:]:
                assert roast.state[a][moment].dtype == state_dtype
                adamw.state[b][moment] = adamw.state[b][moment].to(state_dtype).to(wide)
                assert_same_bits(roast.state[a][moment].to(wide), adamw.state[b][moment], f"{moment} of parameter {i}")


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_a_learning_rate_may_be_a_tensor_of_one_element_of_any_shape(shape: tuple[int, ...], backend: str) -> None:
    ours, theirs = (torch.arange(5.0).requires_grad_() for _ in range(2))
    optimizer = RoastAdamW([ours], lr=torch.full(shape, 0.1), backend=backend)
    expected = torch.optim.AdamW([theirs], lr=torch.tensor(0.1), foreach=False)
    for param in (ours, theirs):
        param.grad = torch.ones(5)
    optimizer.step()
    expected.step()
    torch.testing.assert_close(ours, theirs)
