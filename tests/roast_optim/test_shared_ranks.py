"""Several optimizers for one model."""

from __future__ import annotations

import copy
import gc
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from roast_optim import RoastAdamW, SharedRanks

OPTIONS: dict[str, Any] = {"lr": 1e-2, "alpha": 0.5, "beta": 5.0, "refresh_every": 3, "selective": True}
SHAPES = [(40, 7), (64,), (33,), (5, 5)]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradient(param: Tensor, step: int, number: int) -> Tensor:
    return torch.randn(param.shape, generator=torch.Generator().manual_seed(100 * step + number)) * 10.0**number


def train(params: list[nn.Parameter], optimizers: list[RoastAdamW], steps: range, skip: tuple[int, ...] = ()) -> None:
    for step in steps:
        for number, param in enumerate(params):
            param.grad = None if number in skip and step % 2 else gradient(param, step, number)
        for optimizer in reversed(optimizers):  # a backward pass comes to the last parameter first
            optimizer.step()


@pytest.mark.parametrize("split", [[1, 1, 1, 1], [2, 2], [1, 3]], ids=str)
def test_they_train_as_one_optimizer_of_all_parameters(split: list[int], backend: str) -> None:
    whole, ranks = parameters(), SharedRanks()
    one = RoastAdamW(whole, backend=backend, **OPTIONS)
    train(whole, [one], range(10))
    parts, several, first = parameters(), [], 0
    for count in split:
        several.append(RoastAdamW(parts[first : first + count], shared_ranks=ranks, backend=backend, **OPTIONS))
        first += count
    train(parts, several, range(10))
    assert one.refreshes == 3
    for number, (expected, actual) in enumerate(zip(whole, parts, strict=True)):
        assert torch.equal(expected, actual), f"parameter {number}"


def test_they_go_on_from_checkpoints_of_each(backend: str) -> None:
    def make(params: list[nn.Parameter]) -> list[RoastAdamW]:
        ranks = SharedRanks()
        return [RoastAdamW([param], shared_ranks=ranks, backend=backend, **OPTIONS) for param in params]

    whole = parameters()
    train(whole, make(whole), range(10))
    halves = parameters()
    first = make(halves)
    train(halves, first, range(5))
    saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in first]
    del first
    second = make(halves)
    for optimizer, state_dict in zip(second, saved, strict=True):
        optimizer.load_state_dict(state_dict)
    train(halves, second, range(5, 10))
    assert all(map(torch.equal, whole, halves))


def test_one_that_seldom_steps_does_not_hold_up_the_others() -> None:
    params, ranks = parameters(), SharedRanks()
    optimizers = [RoastAdamW([p], shared_ranks=ranks, backend="reference", **OPTIONS) for p in params]
    train(params, optimizers, range(12), skip=(1,))
    assert {optimizer.refreshes for optimizer in optimizers} == {3}


def test_one_in_which_nothing_is_selective_takes_part_in_the_numbering_only() -> None:
    params, ranks = parameters(), SharedRanks()
    options = [{**OPTIONS, "selective": number != 0} for number in range(4)]
    optimizers = [
        RoastAdamW([p], shared_ranks=ranks, backend="reference", **o) for p, o in zip(params, options, strict=True)
    ]
    train(params, optimizers, range(6))
    assert [optimizer.refreshes for optimizer in optimizers] == [0, 2, 2, 2]
    assert [next(iter(optimizer.positions.values())).parameter_id for optimizer in optimizers] == [0, 1, 2, 3]


def test_a_group_that_comes_later_has_ids_of_its_own() -> None:
    ranks = SharedRanks()
    first, second = (RoastAdamW([p], shared_ranks=ranks, backend="reference", **OPTIONS) for p in parameters()[:2])
    late = nn.Parameter(torch.ones(3))
    first.add_param_group({"params": [late]})
    ids = [position.parameter_id for optimizer in (first, second) for position in optimizer.positions.values()]
    assert ids == [0, 2, 1]


def test_optimizers_that_are_gone_are_forgotten() -> None:
    ranks = SharedRanks()
    kept, gone = (RoastAdamW([p], shared_ranks=ranks, backend="reference", **OPTIONS) for p in parameters()[:2])
    del gone
    gc.collect()
    assert ranks.optimizers == [kept]


def test_other_options_of_the_whole_optimizer_are_refused() -> None:
    ranks = SharedRanks()
    params = parameters()
    kept = RoastAdamW(params[:1], shared_ranks=ranks, backend="reference", **OPTIONS)
    with pytest.raises(ValueError, match=r"shared_ranks.*refresh_every=4.*give all of them the same"):
        RoastAdamW(params[1:], shared_ranks=ranks, backend="reference", **{**OPTIONS, "refresh_every": 4})
    assert ranks.optimizers == [kept]


# ----------------------------------------------------------------------------------------------------- without a handle


@pytest.mark.parametrize("split", [1, 2], ids=["one per parameter", "two halves"])
def test_optimizers_that_take_turns_with_the_same_draws_are_told(split: int) -> None:
    params = parameters()
    optimizers = [
        RoastAdamW(params[i : i + split], backend="reference", **OPTIONS) for i in range(0, len(params), split)
    ]
    with pytest.warns(UserWarning, match="same seed.*SharedRanks"):
        train(params, optimizers, range(6))


@pytest.mark.parametrize("how", ["a handle", "seeds", "one after the other"])
def test_nothing_is_said_where_draws_are_independent(how: str) -> None:
    ranks = SharedRanks() if how == "a handle" else None
    made = [parameters()[:1], parameters()[1:2]]
    optimizers = [
        RoastAdamW(
            params, shared_ranks=ranks, seed=1000 + number if how == "seeds" else 7, backend="reference", **OPTIONS
        )
        for number, params in enumerate(made)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if how == "one after the other":
            for params, optimizer in zip(made, optimizers, strict=True):
                train(params, [optimizer], range(8))
        else:
            train([*made[0], *made[1]], optimizers, range(8))


def test_a_step_in_the_backward_pass_works() -> None:
    torch.manual_seed(0)
    model, ranks, optimizers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), SharedRanks(), []
    for param in model.parameters():
        optimizer = RoastAdamW([param], shared_ranks=ranks, backend="reference", **OPTIONS)
        optimizers.append(optimizer)
        param.register_post_accumulate_grad_hook(lambda _, own=optimizer: (own.step(), own.zero_grad())[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            model(torch.randn(3, 8)).square().sum().backward()
    assert {optimizer.refreshes for optimizer in optimizers} == {3}
    assert {optimizer.steps_since_refresh for optimizer in optimizers} == {1}
