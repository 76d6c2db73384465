"""What PyTorch promises of every optimizer: parameters, names, hooks, closures and gradients as with AdamW."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile

from roast_optim import RoastAdamW
from roast_optim.masking import keep_thresholds, rescaling_factors, selection_tables
from tests.support.snapshot import assert_same_bits, assert_same_snapshots, snapshot

SHAPES = [(9, 5), (7,), ()]
NAMES = ["matrix", "vector", "scalar"]
STEPS = 8


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def roast(params: Any, backend: str, **options: Any) -> RoastAdamW:
    """An optimizer whose masks leave out about half of the elements from the fourth step on."""
    defaults: dict[str, Any] = {"lr": 1e-2, "alpha": 0.5, "beta": 3.0, "refresh_every": 3}
    return RoastAdamW(params, backend=backend, **{**defaults, **options})


def gradient(param: Tensor, step: int, index: int) -> Tensor:
    return torch.randn(param.shape, generator=torch.Generator().manual_seed(100 * step + index)).to(param.dtype)


def set_gradients(optimizer: Optimizer, step: int) -> None:
    for index, param in enumerate(of(optimizer)):
        param.grad = gradient(param, step, index)


def train(optimizer: Optimizer, steps: Iterable[int] = range(STEPS)) -> None:
    for step in steps:
        set_gradients(optimizer, step)
        optimizer.step()


def assert_agree(ours: Optimizer, theirs: Optimizer, backend: str) -> None:
    """Parameters and what AdamW keeps of them are equal, bit for bit on the reference."""
    for i, (mine, other) in enumerate(zip(of(ours), of(theirs), strict=True)):
        assert (mine in ours.state) == (other in theirs.state)
        states = [(key, ours.state[mine][key], value) for key, value in theirs.state.get(other, {}).items()]
        for name, left, right in [("param", mine.detach(), other.detach()), *states]:
            what = f"{name} of parameter {i}"
            if backend == "reference":
                assert_same_bits(left, right, what)
            else:
                torch.testing.assert_close(left, right, msg=lambda said, what=what: f"{what}: {said}")


def test_parameters_may_come_from_a_generator_or_with_their_names(backend: str) -> None:
    optimizers = [
        roast(params, backend)
        for params in (parameters(), (param for param in parameters()), zip(NAMES, parameters(), strict=True))
    ]
    expected, from_generator, named = optimizers
    for optimizer in optimizers:
        train(optimizer)
    assert named.param_groups[0].pop("param_names") == NAMES
    assert_same_snapshots(snapshot(from_generator), snapshot(expected))
    assert_same_snapshots(snapshot(named), snapshot(expected))


def test_names_are_in_groups_and_state_dict_and_survive_copies_and_loading(backend: str) -> None:
    first, second, third = zip(NAMES, parameters(), strict=True)
    optimizer = roast([first, second], backend)
    optimizer.add_param_group({"params": [third]})
    assert [group["param_names"] for group in optimizer.param_groups] == [["matrix", "vector"], ["scalar"]]
    assert [type(param) for param in of(optimizer)] == [nn.Parameter] * 3
    train(optimizer)
    nameless = roast([{"params": parameters()[:2]}, {"params": parameters()[2:]}], backend)
    optimizer.load_state_dict(nameless.state_dict())  # which has no names to put in their place
    nameless.load_state_dict(optimizer.state_dict())
    for each in (optimizer, nameless, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        names = [group["param_names"] for group in each.state_dict()["param_groups"]]
        assert names == [["matrix", "vector"], ["scalar"]]


@pytest.mark.parametrize("how", ["not a dict", "set", "no tensor", "no leaf", "known", "named"])
def test_a_group_that_torch_refuses_leaves_the_optimizer_as_it_was(how: str, backend: str) -> None:
    optimizer, untouched = roast(parameters(), backend), roast(parameters(), backend)
    train(optimizer, range(5))
    new = nn.Parameter(torch.ones(4))
    group: Any = {
        "not a dict": [new], "set": {"params": {new}}, "no tensor": {"params": [1.0]}, "no leaf": {"params": [2 * new]},
        "known": {"params": [new, of(optimizer)[1]]}, "named": {"params": [("new", new)]},
    }[how]  # fmt: skip
    with pytest.raises(ValueError if how in ("no leaf", "known", "named") else TypeError):
        optimizer.add_param_group(group)
    train(optimizer, range(5, STEPS))
    train(untouched)
    assert_same_snapshots(snapshot(optimizer), snapshot(untouched))
    optimizer.add_param_group({"params": [new]})


@pytest.mark.parametrize(("added_at", "selective"), [(1, False), (4, False), (4, True)])
def test_a_group_added_in_the_middle_leaves_the_masks_of_the_others(
    added_at: int, selective: bool, backend: str
) -> None:
    """The only refresh is before step 3: a selective group added after it is not ranked with the others."""
    grown, plain = (roast(parameters(), backend, refresh_every=None, betas=(0.0, 0.9)) for _ in range(2))
    for step in range(STEPS):
        if step == added_at:
            grown.add_param_group({"params": nn.Parameter(torch.ones(6)), "selective": selective})
        for optimizer in (grown, plain):
            if step == 3:
                optimizer.refresh()
            train(optimizer, [step])
        assert_same_snapshots(snapshot(grown)[:1], snapshot(plain))
    assert 0 < (plain.state[of(plain)[0]]["exp_avg"] == 0).sum() < 45
    assert (grown.state[of(grown)[3]]["exp_avg"] != 0).all()


def tied_model() -> Any:
    """Two layers that share their weight."""
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    for index, param in enumerate(model.parameters()):
        param.data = gradient(param, STEPS, index)
    return model


def take_steps(model: nn.Module, optimizer: Optimizer) -> None:
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.eye(5)).square().sum().backward()
        optimizer.step()


def test_a_tied_weight_is_counted_and_updated_once(backend: str) -> None:
    model, other = tied_model(), tied_model()
    ours = RoastAdamW(model.parameters(), selective=False, lr=0.1, backend=backend)
    theirs = AdamW(other.parameters(), lr=0.1, foreach=False)
    take_steps(model, ours)
    take_steps(other, theirs)
    assert model[2].weight is model[0].weight
    assert ours.selection_stats()["elements"] == 25 + 5 + 5
    assert_agree(ours, theirs, backend)


def test_a_group_may_be_empty(backend: str) -> None:
    ours, theirs = (
        kind([{"params": []}, {"params": parameters()}], lr=1e-2, **options)  # type: ignore[operator]
        for kind, options in (
            (RoastAdamW, {"selective": False, "backend": backend}),
            (AdamW, {"foreach": False}),
        )
    )
    train(ours)
    train(theirs)
    assert_agree(ours, theirs, backend)


def test_the_default_device_plays_no_part(backend: str) -> None:
    optimizers = []
    for device in ("cpu", "meta"):
        keep_thresholds.cache_clear()
        rescaling_factors.cache_clear()
        selection_tables.cache_clear()
        optimizer = roast(parameters(), backend)
        for step in range(STEPS):
            set_gradients(optimizer, step)
            with torch.device(device):
                optimizer.step()
                optimizer.selection_stats()
        optimizers.append(optimizer)
    assert_same_snapshots(snapshot(optimizers[1]), snapshot(optimizers[0]))


def test_a_warning_names_the_line_that_caused_it(backend: str) -> None:
    optimizer = roast(parameters(), backend)
    with pytest.warns(UserWarning, match="found no accumulated importance") as caught:
        optimizer.refresh()
    assert [warning.filename for warning in caught] == [__file__]
    optimizer = roast(parameters(), backend, refresh_every=1)
    for param in of(optimizer):
        param.grad = torch.zeros_like(param)
    with pytest.warns(UserWarning, match="found no accumulated importance") as caught:
        optimizer.step()
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_model_and_optimizer_copied_together_train_together(copied: Any, backend: str) -> None:
    model = tied_model()
    optimizer = roast(model.parameters(), backend)
    take_steps(model, optimizer)
    twin, optimizer_of_twin = copied((model, optimizer))
    take_steps(model, optimizer)
    assert not torch.equal(twin[2].weight, model[2].weight)
    take_steps(twin, optimizer_of_twin)
    assert_same_bits(twin[2].weight.detach(), model[2].weight.detach())
    assert_same_snapshots(snapshot(optimizer_of_twin), snapshot(optimizer))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_model_may_change_its_dtype_before_the_first_step(dtype: torch.dtype, backend: str) -> None:
    model, converted = (nn.ParameterList(parameters()) for _ in range(2))
    early, late = roast(model.parameters(), backend), roast(converted.to(dtype).parameters(), backend)
    model.to(dtype)
    train(early)
    train(late)
    assert {param.dtype for param in of(early)} == {dtype}
    assert_same_snapshots(snapshot(early), snapshot(late))


def set_options(optimizer: Optimizer, step: int) -> None:
    (group,) = optimizer.param_groups
    group |= {"lr": 0.1 / (step + 1), "weight_decay": 0.1 * step, "eps": 10.0**-step, "maximize": step % 2 == 1}
    group["betas"] = (0.1 * step, 0.9 + 0.01 * step)


def change_lr_in_place(optimizer: Optimizer, step: int) -> None:
    (group,) = optimizer.param_groups
    if step == 0:
        group["lr"] = torch.tensor(0.1, dtype=torch.float64)
    group["lr"].mul_(0.5)


def drop_some_gradients(optimizer: Optimizer, step: int) -> None:
    """Zero and None in turn."""
    if step % 3 == 2:
        optimizer.zero_grad(set_to_none=step == 2)
        assert [param.grad is None for param in of(optimizer)] == [step == 2] * 3
        assert not any(param.grad.any() for param in of(optimizer) if param.grad is not None)


def freeze_for_a_while(optimizer: Optimizer, step: int) -> None:
    """One parameter from the beginning and one later; the scalar keeps a gradient, and moves with it."""
    matrix, vector, scalar = of(optimizer)
    for param, frozen in ((matrix, step < 3), (vector, 2 <= step < 6), (scalar, step > 4)):
        param.requires_grad_(not frozen)
        if frozen and param is not scalar:
            param.grad = None


def forget_the_state(optimizer: Optimizer, step: int) -> None:
    if step == 4:
        optimizer.state.clear()


@pytest.mark.parametrize(
    "change", [set_options, change_lr_in_place, drop_some_gradients, freeze_for_a_while, forget_the_state]
)
def test_what_changes_between_steps_acts_as_on_adamw(change: Callable[[Optimizer, int], None], backend: str) -> None:
    ours, theirs = RoastAdamW(parameters(), selective=False, backend=backend), AdamW(parameters(), foreach=False)
    for step in range(STEPS):
        for optimizer in (ours, theirs):
            set_gradients(optimizer, step)
            change(optimizer, step)
            optimizer.step()
        assert_agree(ours, theirs, backend)


@pytest.mark.parametrize(("frozen", "refresh_every"), [(False, None), (True, 3)])
def test_a_none_gradient_leaves_the_parameter_and_makes_no_state(
    frozen: bool, refresh_every: int | None, backend: str
) -> None:
    """A refresh of what is frozen, too, changes no more than the rank of what it has state of."""
    optimizer = roast(parameters(), backend, refresh_every=refresh_every)
    known, new, _ = of(optimizer)
    new.requires_grad_(not frozen)
    for step in range(STEPS):
        set_gradients(optimizer, step)
        new.grad = None
        if step == 4:
            known.requires_grad_(not frozen)
            value, state = snapshot(optimizer)[0][1][0]
        if step >= 4:
            known.grad = None
        optimizer.step()
    assert state.keys() == optimizer.state[known].keys()
    for key in ("step", "exp_avg", "exp_avg_sq"):
        assert_same_bits(optimizer.state[known][key], state[key], key)
    assert_same_bits(known.detach(), value)
    assert_same_bits(new.detach(), parameters()[1].detach())
    assert new not in optimizer.state


def test_a_step_changes_parameters_and_state_where_they_are(backend: str) -> None:
    optimizer = roast(parameters(), backend, amsgrad=True)
    addresses = [param.data_ptr() for param in of(optimizer)]
    train(optimizer, [0])
    tensors = {(param, key): value for param in of(optimizer) for key, value in optimizer.state[param].items()}
    train(optimizer, range(1, STEPS))
    assert [param.data_ptr() for param in of(optimizer)] == addresses
    assert all(optimizer.state[param][key] is tensor for (param, key), tensor in tensors.items())


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
def test_gradients_that_have_a_graph_of_their_own_add_nothing_to_it(backend: str) -> None:
    optimizer, plain = (roast(parameters(), backend) for _ in range(2))
    for each in (optimizer, plain):
        for _ in range(STEPS):
            each.zero_grad()
            loss = torch.stack([param.pow(3).sum() for param in of(each)]).sum()
            loss.backward(create_graph=each is optimizer)
            assert all(param.grad is not None and param.grad.requires_grad == (each is optimizer) for param in of(each))
            each.step()
            assert torch.is_grad_enabled()
    assert_same_snapshots(snapshot(optimizer), snapshot(plain))
    assert all(param.is_leaf and param.requires_grad for param in of(optimizer))
    assert not any(value.requires_grad for state in optimizer.state.values() for value in state.values())


def test_hooks_of_all_optimizers_surround_its_own_until_they_are_removed(backend: str) -> None:
    optimizer = roast(parameters(), backend, refresh_every=1)
    calls: list[tuple[str, int]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda called, *_: calls.append((name, called.param_groups[0]["refreshes"]))

    handles = [
        register_optimizer_step_pre_hook(note("all before")), register_optimizer_step_post_hook(note("all after")),
        optimizer.register_step_pre_hook(note("before")), optimizer.register_step_post_hook(note("after")),
    ]  # fmt: skip
    try:
        train(optimizer, [0])
    finally:
        for handle in handles:
            handle.remove()
    train(optimizer, [1])
    assert calls == [("all before", 0), ("before", 0), ("after", 1), ("all after", 1)]


def test_a_hook_may_put_a_closure_in_the_place_of_the_arguments(backend: str) -> None:
    optimizer, plain = roast(parameters(), backend), roast(parameters(), backend)
    losses = iter(range(STEPS))

    def closure() -> float:
        step = next(losses)
        set_gradients(optimizer, step)
        return float(step)

    optimizer.register_step_pre_hook(lambda self, args, kwargs: ((self,), {"closure": closure}))
    assert [optimizer.step() for _ in range(STEPS)] == list(range(STEPS))
    train(plain)
    assert_same_snapshots(snapshot(optimizer), snapshot(plain))


def test_hooks_before_and_after_saving_may_change_what_is_saved(backend: str) -> None:
    optimizer = roast(parameters(), backend)
    optimizer.register_state_dict_pre_hook(lambda self: self.param_groups[0].update(lr=0.5))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "note": "kept"})
    saved = optimizer.state_dict()
    assert (saved["note"], saved["param_groups"][0]["lr"]) == ("kept", 0.5)


def test_hooks_after_loading_see_every_dtype_as_it_was_saved(backend: str) -> None:
    """The loader of torch changes them on the way."""
    optimizer, loaded = roast(parameters(torch.bfloat16), backend), roast(parameters(torch.bfloat16), backend)
    train(optimizer)
    seen: list[torch.dtype] = []
    loaded.register_load_state_dict_post_hook(
        lambda self: seen.extend(self.state[of(self)[0]][key].dtype for key in ("step", "exp_avg", "rank_code"))
    )
    loaded.load_state_dict(optimizer.state_dict())
    assert seen == [torch.float32, torch.bfloat16, torch.uint8]


@pytest.mark.filterwarnings("ignore:the state_dict was saved by an optimizer without selection")
@pytest.mark.parametrize("kind", [RoastAdamW, AdamW])
def test_loading_leaves_the_given_state_dict_as_it_was(kind: type[Optimizer], backend: str) -> None:
    optimizer: Optimizer = roast(parameters(), backend) if kind is RoastAdamW else AdamW(parameters())
    train(optimizer)
    given = optimizer.state_dict()
    expected = copy.deepcopy(given)
    roast(parameters(), backend).load_state_dict(given)
    assert given.keys() == expected.keys()
    assert given["param_groups"] == expected["param_groups"]
    for index, state in expected["state"].items():
        assert state.keys() == given["state"][index].keys()
        for key, value in state.items():
            assert_same_bits(given["state"][index][key], value, f"{key} of parameter {index}")


def test_the_profiler_names_every_step_and_zero_grad(backend: str) -> None:
    optimizer = roast(parameters(), backend)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        train(optimizer)
        optimizer.zero_grad()
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts["Optimizer.step#RoastAdamW.step"] == STEPS
    assert counts["Optimizer.zero_grad#RoastAdamW.zero_grad"] == 1


def test_going_back_through_a_step_is_an_error(backend: str) -> None:
    """As for every in-place operation: the values that the graph saved are gone."""
    optimizer = roast(parameters(), backend)
    loss = torch.stack([param.square().sum() for param in of(optimizer)]).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
