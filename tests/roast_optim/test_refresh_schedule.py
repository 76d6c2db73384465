"""When ranks come by themselves, what is said when none ever came, and that a number of steps means what it did."""

from __future__ import annotations

import copy
import hashlib
import warnings
from typing import Any

import pytest
import torch

from roast_optim import RoastAdamW
from roast_optim.options import RoastOptions
from tests.models import ARCHITECTURES
from tests.support.snapshot import assert_same_snapshots, snapshot


def make(**options: Any) -> RoastAdamW:
    parameter = torch.nn.Parameter(torch.zeros(50))
    return RoastAdamW([parameter], **{"selective": True, "backend": "reference", **options})


def take(optimizer: RoastAdamW, steps: int) -> list[int]:
    """The steps, counted from one, after which a refresh came."""
    came = []
    for step in range(1, steps + 1):
        before = optimizer.refreshes
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.arange(parameter.numel(), dtype=torch.float32).view_as(parameter)
        optimizer.step()
        came += [step] if optimizer.refreshes > before else []
    return came


def test_the_default_ranks_after_32_steps_and_then_ever_less_often() -> None:
    assert take(make(), 3100) == [32, 64, 128, 256, 512, 1024, 2048, 3072]


def test_the_schedule_goes_on_from_a_checkpoint() -> None:
    first = make()
    take(first, 100)
    second = make()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.param_groups[0]["params"][0].data.copy_(first.param_groups[0]["params"][0])
    assert take(first, 200) == take(second, 200) == [28, 156]
    assert_same_snapshots(snapshot(second), snapshot(first))


def test_measured_importance_counts_as_the_first_ranks() -> None:
    optimizer = make()
    with optimizer.measure_importance():
        take(optimizer, 3)
    optimizer.refresh()
    assert take(optimizer, 100) == [32, 96]


def test_importance_that_is_seldom_accumulated_must_be_there_for_the_first_ranks() -> None:
    assert make(importance_every=32).options.importance_every == 32
    with pytest.raises(ValueError, match=r"importance_every=33.*at most refresh_every \(auto: 32 steps\)"):
        make(importance_every=33)


@pytest.mark.parametrize("value", ["often", "Auto", 0, True])
def test_what_is_no_schedule_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"refresh_every=.*\"auto\" or None"):
        make(refresh_every=value)


def test_an_interval_is_known_after_any_number_of_refreshes() -> None:
    options = {name: getattr(make().options, name) for name in RoastOptions.__dataclass_fields__}
    assert RoastOptions.of(options).interval(2**31) == 1024
    assert RoastOptions.of({**options, "refresh_every": 7}).interval(2**31) == 7
    assert RoastOptions.of({**options, "refresh_every": None}).interval(0) == 0


@pytest.mark.parametrize("loader", [33, 40])
def test_one_epoch_of_the_readme_differs_from_adamw(loader: int) -> None:
    """Model and loop as README has them, without the adversary, whose part is not the optimizer's."""

    def trained(optimizer_class: Any, **options: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = ARCHITECTURES["bert"].model(dropout=0.0)
        model.train()
        of_model = optimizer_class is RoastAdamW
        optimizer = optimizer_class(model if of_model else model.parameters(), lr=1e-3, weight_decay=0.0, **options)
        for step in range(loader):
            model(**ARCHITECTURES["bert"].batch(samples=2, seed=step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach() for parameter in model.parameters()]

    plain = trained(torch.optim.AdamW, foreach=False)
    unmasked = trained(RoastAdamW, refresh_every=None, backend="reference")
    masked = trained(RoastAdamW, backend="reference")
    assert all(map(torch.equal, plain, unmasked))
    assert not all(map(torch.equal, plain, masked))


# ------------------------------------------------------------------------------------------------------ never a mask


@pytest.mark.parametrize("refresh_every", [None, 100_000])
def test_a_training_without_masks_is_told_once_with_the_cure(refresh_every: int | None) -> None:
    optimizer = make(refresh_every=refresh_every)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(optimizer, 255)
    with pytest.warns(UserWarning, match=r"256 steps, none of them masked.*\"auto\"") as caught:
        take(optimizer, 1)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(optimizer, 300)


@pytest.mark.parametrize("options", [{"selective": False, "refresh_every": None}, {}, {"refresh_every": 200}])
def test_nothing_is_said_where_masks_come_or_are_not_wanted(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(make(**options), 600)


def test_whether_a_step_was_masked_follows_from_a_checkpoint() -> None:
    optimizer = make(refresh_every=None)
    take(optimizer, 2)
    optimizer.refresh()
    assert not optimizer.has_masked  # ranks came after the last step
    take(optimizer, 1)
    assert optimizer.has_masked
    loaded = make()
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.has_masked


# ---------------------------------------------------------------------------------------------------------- old bits

# Of the commit before "auto": which elements 40 steps moved, and the rank codes after them.
RECORDED = {
    "every 5 steps": (
        {"refresh_every": 5},
        "f5bf7b687fdd60fb910fcd2a58f6f80f12a7674ae24a77c3acfa53799cf8dd4d",
    ),
    "one draw for 7 steps": (
        {"refresh_every": 7, "mask_schedule": "refresh", "importance_every": 2, "rescale": False},
        "5d875beba3ccd1cc46a09083487b4a10eac8b18ed893c66f9cff7913864cf426",
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_number_of_steps_gives_the_masks_that_it_always_gave(name: str, backend: str) -> None:
    """Gradients are exact numbers and AdamW moves what is kept by its sign, so the record holds on every machine."""
    options, recorded = RECORDED[name]
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((40, 7), (64,), (33,))]
    groups = [{"params": params[:2], "selective": True}, {"params": params[2:], "selective": False}]
    optimizer = RoastAdamW(
        groups, lr=0.25, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0, alpha=0.6, beta=4.0, seed=11, backend=backend,
        **options,
    )  # fmt: skip
    digest = hashlib.sha256()
    for step in range(1, 41):
        before = [param.detach().clone() for param in params]
        for number, param in enumerate(params):
            index = torch.arange(param.numel(), dtype=torch.int64)
            numbers = (index * 2654435761 + step * 40503 + number * 97) % 1021
            param.grad = (numbers - 510.5).to(torch.float32).view_as(param)
        optimizer.step()
        for param, old in zip(params, before, strict=True):
            digest.update((param != old).numpy().tobytes())
    for param in params[:2]:
        digest.update(optimizer.state[param]["rank_code"].numpy().tobytes())
    assert digest.hexdigest() == recorded
