"""A module in place of parameters, parameters that nobody marked, and options that would pass unseen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from roast_optim import RoastAdamW, selective_param_groups
from tests.models import ARCHITECTURES


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(3))


def stepped(optimizer: RoastAdamW) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    optimizer.step()


# ------------------------------------------------------------------------------------------------------------- modules


@pytest.mark.parametrize("architecture", ["bert", "gpt2_language_model", "t5_sequence_to_sequence"])
def test_of_a_module_the_groups_are_built(architecture: str) -> None:
    model = ARCHITECTURES[architecture].model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = RoastAdamW(model, lr=0.5, weight_decay=0.125, backend="reference")
    expected = selective_param_groups(model, 0.125)
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == [
        list(map(id, group["params"])) for group in expected
    ]
    for group, own in zip(optimizer.param_groups, expected, strict=True):
        assert (group["lr"], group["weight_decay"], group["selective"]) == (0.5, own["weight_decay"], own["selective"])


@pytest.mark.parametrize("model", [nn.LSTM(4, 4), nn.Linear(3, 2), nn.Embedding(5, 2)], ids=lambda m: type(m).__name__)
def test_a_module_without_blocks_is_refused_with_the_cure_which_works(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"{type(model).__name__} has no transformer blocks.*selective=False"):
        RoastAdamW(model, backend="reference")
    optimizer = RoastAdamW(model, selective=False, backend="reference")
    assert not any(group["selective"] for group in optimizer.param_groups)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len([*model.parameters()])


@pytest.mark.parametrize("given", [lambda m: m.parameters(), lambda m: [*m.parameters()], lambda m: m.state_dict()])
def test_parameters_in_place_of_a_model_are_told_apart(given: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(TypeError, match=r"model is of type \w+, not a torch.nn.Module: pass the model itself"):
        selective_param_groups(given(nn.Linear(2, 2)), 0.01)


def test_a_module_that_is_still_lazy_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"lazy parameters.*run a batch"):
        RoastAdamW(nn.Sequential(nn.LazyLinear(2)), backend="reference")


# ------------------------------------------------------------------------------------------------------------ unmarked


@pytest.mark.parametrize(
    "params",
    [
        lambda: [parameter(), parameter()],
        lambda: iter([parameter()]),
        lambda: [{"params": [parameter()], "selective": True}, {"params": [parameter()]}],
        lambda: nn.Linear(2, 2).named_parameters(),
    ],
    ids=["list", "generator", "one group of two", "named"],
)
def test_parameters_without_a_word_on_selective_are_told_once(params: Callable[[], Any]) -> None:
    with pytest.warns(UserWarning, match=r"without a word on `selective`.*RoastAdamW\(model"):
        optimizer = RoastAdamW(params(), backend="reference")
    names = [("another", parameter())] if "param_names" in optimizer.param_groups[0] else [parameter()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.add_param_group({"params": names})
    assert all(group["selective"] is True for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("params", "options"),
    [
        (lambda: [parameter()], {"selective": True}),
        (lambda: [parameter()], {"selective": False}),
        (lambda: [{"params": [parameter()], "selective": True}], {}),
    ],
)
def test_a_word_on_selective_is_enough(params: Callable[[], Any], options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RoastAdamW(params(), backend="reference", **options)


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("key", ["alhpa", "Alpha", "wieght_decay", "selectve", "pretrained_deacy", "weight-decay"])
def test_a_misspelled_key_of_a_group_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown option {key}=.*is '\w+' meant"):
        RoastAdamW([{"params": [parameter()], "selective": True, key: 0.5}], backend="reference")


@pytest.mark.parametrize("key", ["refresh_every", "importance", "rescale", "state_dtype", "backend"])
def test_an_option_of_the_whole_optimizer_has_no_place_in_a_group(key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}=.*no effect.*RoastAdamW\(..., {key}="):
        RoastAdamW([{"params": [parameter()], "selective": True, key: None}], backend="reference")


def test_what_adamw_alone_can_do_is_refused_in_a_group() -> None:
    with pytest.raises(ValueError, match="fused=True in a parameter group is not supported"):
        RoastAdamW([{"params": [parameter()], "selective": True, "fused": True}], backend="reference")


@pytest.mark.parametrize("key", ["name", "lr_scale", "initial_lr", "layer", "swa_lr"])
def test_keys_of_others_pass(key: str) -> None:
    optimizer = RoastAdamW([{"params": [parameter()], "selective": True, key: 0.5}], backend="reference")
    stepped(optimizer)
    assert optimizer.param_groups[0][key] == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [("alpha", 2.0), ("beta", "steep"), ("lr", -1.0), ("betas", (0.9,)), ("selective", "no"), ("seed", -3),
     ("pretrained_decay_by", "rnak"), ("eps", float("nan"))],
)  # fmt: skip
def test_an_option_changed_to_nonsense_is_refused_before_anything_moves(name: str, value: Any, backend: str) -> None:
    groups = [{"params": [parameter()], "selective": True}, {"params": [parameter()], "selective": True}]
    optimizer = RoastAdamW(groups, backend=backend)
    stepped(optimizer)
    optimizer.param_groups[1][name] = value
    before = [group["params"][0].detach().clone() for group in optimizer.param_groups]
    with pytest.raises(ValueError, match=rf"invalid {name}=.*in group 1"):
        stepped(optimizer)
    for group, old in zip(optimizer.param_groups, before, strict=True):
        assert torch.equal(group["params"][0], old)


def test_an_option_taken_away_or_a_misspelled_one_set_later_is_refused(backend: str) -> None:
    optimizer = RoastAdamW([parameter()], selective=True, backend=backend)
    stepped(optimizer)
    optimizer.param_groups[0]["alhpa"] = 0.5
    with pytest.raises(ValueError, match=r"alhpa.*in group 0"):
        stepped(optimizer)
    del optimizer.param_groups[0]["alhpa"], optimizer.param_groups[0]["alpha"]
    with pytest.raises(ValueError, match="group 0 has no 'alpha' any more"):
        stepped(optimizer)


@pytest.mark.parametrize("value", ["no", "False", None, 2])
def test_rescale_is_a_switch(value: Any) -> None:
    with pytest.raises(ValueError, match=r"rescale=.*True or False"):
        RoastAdamW([parameter()], selective=True, rescale=value, backend="reference")


@pytest.mark.parametrize(("option", "tensor"), [("state_dtype", "exp_avg"), ("importance_dtype", "importance")])
@pytest.mark.parametrize("name", ["float32", "torch.float32", "bfloat16"])
def test_a_dtype_may_be_given_by_name(name: str, option: str, tensor: str) -> None:
    optimizer = RoastAdamW([parameter()], selective=True, backend="reference", **{option: name})
    stepped(optimizer)
    expected = getattr(torch, name.removeprefix("torch."))
    assert getattr(optimizer.options, option) is expected
    assert optimizer.state[optimizer.param_groups[0]["params"][0]][tensor].dtype is expected
    with pytest.raises(ValueError, match=rf"{option}='floaty'.*the name of one"):
        RoastAdamW([parameter()], selective=True, backend="reference", **{option: "floaty"})
