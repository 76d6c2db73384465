"""RoastAdamW(stochastic_rounding=True) and importance_dtype=torch.bfloat16: what training in 16 bits needs of them."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from roast_optim import RoastAdamW
from roast_optim.importance import percentile_ranks
from tests.support.snapshot import assert_same_bits

HALF = (torch.bfloat16, torch.float16)
half_dtypes = pytest.mark.parametrize("dtype", HALF, ids=str)


def an_optimizer(
    numel: int, backend: str, dtype: torch.dtype, values: float = 1.0, **options: Any
) -> tuple[nn.Parameter, RoastAdamW]:
    param = nn.Parameter(torch.full((numel,), values, dtype=dtype))
    usual = {"lr": 1e-4, "weight_decay": 0.0, "selective": True, "refresh_every": None, "backend": backend}
    return param, RoastAdamW([param], **{**usual, **options})


def train(param: nn.Parameter, optimizer: RoastAdamW, steps: int) -> Tensor:
    """Steps with gradients of one, which move every element by lr; the parameter afterwards, in float64."""
    param.grad = torch.ones_like(param)
    for _ in range(steps):
        optimizer.step()
    return param.detach().double()


@half_dtypes
@pytest.mark.parametrize("selective", [False, True])
def test_updates_below_half_a_unit_in_the_last_place_move_a_parameter_as_in_float32(
    selective: bool, dtype: torch.dtype, backend: str
) -> None:
    """200 steps of 1/40 of a unit of bfloat16, 1/5 of one of float16, with everything in 16 bits."""
    unit = torch.finfo(dtype).eps / 2
    options: dict[str, Any] = {"lr": unit / 40 if dtype == torch.bfloat16 else unit / 5, "selective": selective}
    wide = train(*an_optimizer(1, backend, torch.float32, **options), steps=200)
    still = train(*an_optimizer(4096, backend, dtype, **options), steps=200)
    assert (still == 1).all()
    moved = train(*an_optimizer(4096, backend, dtype, stochastic_rounding=True, **options), steps=200)
    assert (moved < 1).any()
    standard_error = float(moved.std()) / 4096**0.5
    assert standard_error < 0.05 * float(1 - wide)
    # The step's size depends on the square root of a rounded moment, which is good to one per cent.
    assert abs(float(moved.mean() - wide)) <= 4 * standard_error + 0.01 * float(1 - wide)


def test_a_second_moment_of_bfloat16_decays_only_with_it(backend: str) -> None:
    for stochastic in (False, True):
        param, optimizer = an_optimizer(4096, backend, torch.bfloat16, stochastic_rounding=stochastic)
        train(param, optimizer, 1)
        second = optimizer.state[param]["exp_avg_sq"]
        before = float(second.double().mean())
        param.grad = torch.zeros_like(param)
        for _ in range(1000):
            optimizer.step()
        left = float(second.double().mean()) / before
        assert abs(left - 0.999**1000) < 0.02 if stochastic else left == 1


@half_dtypes
def test_it_changes_no_mask_and_no_importance(dtype: torch.dtype, backend: str) -> None:
    found = []
    for stochastic in (False, True):
        param, optimizer = an_optimizer(
            3000, backend, dtype, betas=(0.0, 0.999), refresh_every=3, alpha=0.5, stochastic_rounding=stochastic
        )
        generator = torch.Generator().manual_seed(0)
        for _ in range(7):
            param.grad = torch.randn(3000, generator=generator).to(dtype)
            optimizer.step()
        state = optimizer.state[param]
        found.append({"mask": state["exp_avg"] != 0, **{name: state[name] for name in ("importance", "rank_code")}})
    for name, expected in found[0].items():
        assert_same_bits(found[1][name], expected, name)


@pytest.mark.parametrize("mask_schedule", ["step", "refresh"])
def test_the_bits_are_new_in_every_step_whatever_the_masks_are(mask_schedule: str, backend: str) -> None:
    """Between two refreshes the same masks come back, and the same bits would leave most elements where they are."""
    param, optimizer = an_optimizer(
        4096, backend, torch.bfloat16, stochastic_rounding=True, mask_schedule=mask_schedule, alpha=0.0, beta=1e3
    )
    train(param, optimizer, 1)
    optimizer.refresh()
    assert len(train(param, optimizer, 200).unique()) > 3


def test_a_checkpoint_goes_on_bit_for_bit(backend: str) -> None:
    options: dict[str, Any] = {"stochastic_rounding": True, "importance_dtype": torch.bfloat16, "refresh_every": 4}
    param, optimizer = an_optimizer(500, backend, torch.bfloat16, **options)
    train(param, optimizer, 6)
    twin, loaded = an_optimizer(500, backend, torch.bfloat16, **options)
    with torch.no_grad():
        twin.copy_(param)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same_bits(train(twin, loaded, 5), train(param, optimizer, 5))
    for name, tensor in optimizer.state[param].items():
        assert_same_bits(loaded.state[twin][name], tensor, name)


@pytest.mark.parametrize(
    ("saved", "option"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str
)
def test_the_importance_of_a_checkpoint_keeps_its_dtype(saved: torch.dtype, option: torch.dtype, backend: str) -> None:
    """Beside a parameter whose importance is made anew, they are ranked and stepped together."""
    param, optimizer = an_optimizer(300, backend, torch.float32, importance_dtype=saved)
    train(param, optimizer, 2)
    twin, loaded = an_optimizer(300, backend, torch.float32, importance_dtype=option)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    added = nn.Parameter(torch.ones(7))
    loaded.add_param_group({"params": [added]})
    added.grad = torch.full_like(added, 3.0)
    train(twin, loaded, 2)
    assert loaded.state[twin]["importance"].dtype == saved
    assert loaded.state[added]["importance"].dtype == option
    loaded.refresh()
    assert loaded.state[twin]["rank_code"].unique().tolist() == [int(256 * 150 / 307)]
    assert loaded.state[added]["rank_code"].unique().tolist() == [int(256 * 303.5 / 307)]
    train(twin, loaded, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8], ids=str)
def test_importance_of_another_dtype_in_a_checkpoint_is_refused(dtype: torch.dtype, backend: str) -> None:
    param, optimizer = an_optimizer(30, backend, torch.float32)
    train(param, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["importance"] = saved["state"][0]["importance"].to(dtype)
    with pytest.raises(ValueError, match=f"importance of parameter 0 is {dtype}, not torch.float32 or torch.bfloat16"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("measured", [False, True])
def test_importance_of_bfloat16_does_not_stop_growing(measured: bool, backend: str) -> None:
    """Elements that always have the same gradient, up to its sign and last digits."""
    param, optimizer = an_optimizer(2000, backend, torch.float32, importance_dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    exact, to_nearest = torch.zeros(2000, dtype=torch.float64), torch.zeros(2000, dtype=torch.bfloat16)
    for _ in range(1000):
        param.grad = 1 + 1e-3 * torch.randn(2000, generator=generator)
        if measured:
            with optimizer.measure_importance():
                optimizer.step()
        else:
            optimizer.step()
        exact += param.grad.double() ** 2
        to_nearest += param.grad**2
    importance = optimizer.state[param]["importance"]
    assert importance.dtype == torch.bfloat16
    ratio = importance.double() / exact
    assert abs(float(ratio.mean()) - 1) <= 4 * float(ratio.std()) / 2000**0.5
    assert float(ratio.std()) < 0.06
    assert to_nearest.max() <= 512  # where it stands still


@pytest.mark.parametrize(("steps", "largest"), [(100, 0.003), (1000, 0.008)])
def test_ranks_by_importance_of_bfloat16_are_near_those_by_float32(steps: int, largest: float, backend: str) -> None:
    """The mean difference in percentile rank, for gradients whose scales differ by a few times."""
    numel = 10_000
    generator = torch.Generator().manual_seed(0)
    scales = torch.randn(numel, generator=generator).mul(0.5).exp() * 1e-3
    kept: dict[torch.dtype, tuple[nn.Parameter, RoastAdamW]] = {
        dtype: an_optimizer(numel, backend, torch.float32, importance_dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    for _ in range(steps):
        gradient = scales * torch.randn(numel, generator=generator)
        for param, optimizer in kept.values():
            param.grad = gradient
            optimizer.step()
    ranks = [percentile_ranks([optimizer.state[param]["importance"]])[0].double() for param, optimizer in kept.values()]
    assert float((ranks[0] - ranks[1]).abs().mean()) / 256 < largest
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.999


def test_where_nothing_has_16_bits_it_says_once_that_it_changes_nothing(backend: str) -> None:
    param, optimizer = an_optimizer(5, backend, torch.float32, stochastic_rounding=True)
    with pytest.warns(UserWarning, match="stochastic_rounding=True changes nothing, because no parameter") as caught:
        train(param, optimizer, 3)
    assert len(caught) == 1
    expected = train(*an_optimizer(5, backend, torch.float32), steps=3)
    assert_same_bits(param.detach().double(), expected)
    for dtype, state_dtype in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(*an_optimizer(5, backend, dtype, stochastic_rounding=True, state_dtype=state_dtype), steps=1)


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("stochastic_rounding", "yes", "True or False"),
        ("importance_dtype", torch.float16, r"one of \(torch.float32, torch.bfloat16\), or the name of one"),
        ("importance_dtype", "bfloat", r"one of \(torch.float32, torch.bfloat16\), or the name of one"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object, cure: str, backend: str) -> None:
    with pytest.raises(ValueError, match=f"invalid {name}={value!r}; it must be {cure}"):
        RoastAdamW([nn.Parameter(torch.ones(2))], backend=backend, **{name: value})
