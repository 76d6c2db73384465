"""The decay towards the pre-trained values and masks of the update: against the oracle, and what they leave alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from roast_optim import RoastAdamW
from tests.support.optimizer_and_oracle import OptimizerAndOracle
from tests.support.snapshot import assert_same_bits

VARIANTS = [
    {"pretrained_decay": 0.5},
    {"pretrained_decay": 0.5, "pretrained_decay_by": "rank"},
    {"selection": "update"},
    {"pretrained_decay": 0.5, "pretrained_decay_by": "rank", "selection": "update", "amsgrad": True, "maximize": True},
]
OPTIONS: dict[str, Any] = {"lr": 0.1, "alpha": 0.6, "beta": 3.0, "refresh_every": 3}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_training_follows_the_oracle(variant: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend, dtype=dtype, **OPTIONS, **variant)
    for _ in range(8):
        pair.step()
        pair.assert_same_selection()
        pair.assert_close()


def trained(backend: str, steps: int = 5, dtype: torch.dtype = torch.float32, **options: Any) -> RoastAdamW:
    """After a refresh at the third step; equal gradients for equal numbers of steps."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in [(30, 7), (11,)]]
    optimizer = RoastAdamW(params, backend=backend, **{**OPTIONS, **options})
    for _ in range(steps):
        take_step(optimizer, generator)
    return optimizer


def take_step(optimizer: RoastAdamW, generator: torch.Generator) -> None:
    for param in optimizer.param_groups[0]["params"]:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
    optimizer.step()


def states(optimizer: RoastAdamW) -> list[dict[str, Tensor]]:
    return [optimizer.state[param] for param in optimizer.param_groups[0]["params"]]


@pytest.mark.parametrize("by", ["uniform", "rank"])
def test_it_changes_no_mask_and_no_moment(by: str, backend: str) -> None:
    without, with_decay = trained(backend), trained(backend, pretrained_decay=0.5, pretrained_decay_by=by)
    for i, (state, other) in enumerate(zip(states(without), states(with_decay), strict=True)):
        assert set(other) - set(state) == {"pretrained"}
        for name, tensor in state.items():
            assert_same_bits(other[name], tensor, f"{name} of parameter {i}")


def test_it_keeps_what_the_parameters_were_when_their_state_was_made(backend: str) -> None:
    initial = [param.detach().clone() for param in trained(backend, steps=0).param_groups[0]["params"]]
    for state, values in zip(states(trained(backend, pretrained_decay=0.5)), initial, strict=True):
        assert_same_bits(state["pretrained"], values)


@pytest.mark.parametrize(("state_dtype", "expected"), [(None, torch.bfloat16), (torch.float32, torch.float32)])
def test_its_dtype_is_that_of_the_moments_and_survives_a_checkpoint(
    state_dtype: torch.dtype | None, expected: torch.dtype, backend: str
) -> None:
    optimizer = trained(backend, dtype=torch.bfloat16, state_dtype=state_dtype, pretrained_decay=0.5)
    loaded = trained(backend, steps=0, dtype=torch.bfloat16, state_dtype=state_dtype, pretrained_decay=0.1)
    with torch.no_grad():
        for param, source in zip(loaded.param_groups[0]["params"], optimizer.param_groups[0]["params"], strict=True):
            param.copy_(source)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert loaded.param_groups[0]["pretrained_decay"] == 0.5
    for state, saved in zip(states(loaded), states(optimizer), strict=True):
        assert saved["pretrained"].dtype == expected
        assert_same_bits(state["pretrained"], saved["pretrained"])
    for each in (optimizer, loaded):
        take_step(each, torch.Generator().manual_seed(9))
    for param, wanted in zip(loaded.param_groups[0]["params"], optimizer.param_groups[0]["params"], strict=True):
        assert_same_bits(param.detach(), wanted.detach())


def test_a_checkpoint_without_it_starts_it_at_the_present_values_and_says_so(backend: str) -> None:
    saved = trained(backend).state_dict()
    for group in saved["param_groups"]:
        del group["pretrained_decay"], group["pretrained_decay_by"]
    loaded = trained(backend, steps=0, pretrained_decay=0.5)
    with pytest.warns(UserWarning, match="state_dict has no pretrained: training goes on as if it began"):
        loaded.load_state_dict(saved)
    for param, state in zip(loaded.param_groups[0]["params"], states(loaded), strict=True):
        assert_same_bits(state["pretrained"], param.detach())


def test_by_rank_nothing_decays_before_the_first_ranks_nor_without_selection(backend: str) -> None:
    for options in ({"refresh_every": None}, {"selective": False}):
        plain = trained(backend, **options)
        decayed = trained(backend, pretrained_decay=0.5, pretrained_decay_by="rank", **options)
        for param, wanted in zip(decayed.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True):
            assert_same_bits(param.detach(), wanted.detach())


def test_masks_of_the_update_leave_the_moments_whole_and_unmoved_elements_to_the_decay(backend: str) -> None:
    masked, whole = (
        trained(backend, steps=4, selection="update", selective=s, weight_decay=0.0) for s in (True, False)
    )
    before = [param.detach().clone() for param in masked.param_groups[0]["params"]]
    for optimizer in (masked, whole):
        take_step(optimizer, torch.Generator().manual_seed(3))
    share = masked.selection_stats()["realised_share"]
    assert 0 < share < 1
    stayed = [param.detach() == old for param, old in zip(masked.param_groups[0]["params"], before, strict=True)]
    assert sum(int(same.sum()) for same in stayed) == round((1 - share) * sum(old.numel() for old in before))
    for i, (state, other) in enumerate(zip(states(masked), states(whole), strict=True)):
        for name in ("exp_avg", "exp_avg_sq"):
            assert_same_bits(state[name], other[name], f"{name} of parameter {i}")


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("pretrained_decay", -0.1, "a non-negative number"),
        ("pretrained_decay_by", "layer", "one of .*'uniform', 'rank'"),
        ("selection", "moments", "one of .*'gradient', 'update'"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object, cure: str, backend: str) -> None:
    with pytest.raises(ValueError, match=f"invalid {name}={value!r}; it must be {cure}"):
        RoastAdamW([nn.Parameter(torch.ones(2))], backend=backend, **{name: value})
