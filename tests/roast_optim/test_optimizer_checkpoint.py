"""state_dict, load_state_dict, deepcopy and pickle: training goes on as if it had never stopped, bit for bit."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from roast_optim import RoastAdamW
from tests.conftest import RUNNABLE_BACKENDS
from tests.support.snapshot import Snapshot, assert_same_bits, assert_same_snapshots, snapshot

SHAPES: list[list[tuple[int, ...]]] = [[(7, 9), ()], [(3, 4, 5), (0,)], [(11,)]]
BEFORE, AFTER = 8, 9  # steps; with refresh_every=3 the checkpoint lies between two refreshes
CONFIGURATIONS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "float64": (torch.float64, {"amsgrad": True}),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16 with float32 moments": (torch.bfloat16, {"state_dtype": torch.float32, "amsgrad": True}),
    "float32 with bfloat16 moments": (torch.float32, {"state_dtype": torch.bfloat16}),
    "one draw between refreshes": (torch.float32, {"mask_schedule": "refresh"}),
    "every second importance": (torch.float32, {"importance_every": 2}),
    "random ranks": (torch.float32, {"importance": "random", "seed": 2**64 - 1}),
}


def make(name: str, backend: str, *, initial: int = 0, **changes: Any) -> RoastAdamW:
    """A new optimizer with new parameters."""
    dtype, options = CONFIGURATIONS[name]
    generator = torch.Generator().manual_seed(initial)
    parameters = [[torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in g] for g in SHAPES]
    groups: list[dict[str, Any]] = [{"params": group} for group in parameters]
    groups[1] |= {"alpha": 0.4, "beta": 1.0, "lr": 3e-3}
    groups[2] |= {"selective": False}
    return RoastAdamW(
        groups, **{"lr": 1e-2, "alpha": 0.6, "beta": 3.0, "refresh_every": 3, "backend": backend, **options, **changes}
    )


def train(optimizer: RoastAdamW, first: int, count: int) -> None:
    """Steps `first` to `first + count - 1` of a run whose gradients depend on the step alone."""
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(1000 + step)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()


def parameters_of(optimizer: RoastAdamW) -> list[torch.Tensor]:
    return [parameter.detach() for group in optimizer.param_groups for parameter in group["params"]]


def save(optimizer: RoastAdamW, path: Path | io.BytesIO) -> None:
    torch.save({"optimizer": optimizer.state_dict(), "parameters": parameters_of(optimizer)}, path)


def load(optimizer: RoastAdamW, path: Path | io.BytesIO) -> None:
    saved = torch.load(path, weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    for parameter, value in zip(parameters_of(optimizer), saved["parameters"], strict=True):
        parameter.copy_(value)


def reloaded(optimizer: RoastAdamW, other: RoastAdamW) -> RoastAdamW:
    """`other`, after loading what `optimizer` saves."""
    file = io.BytesIO()
    save(optimizer, file)
    file.seek(0)
    load(other, file)
    return other


def resume_in_this_process(name: str, backend: str, path: Path) -> Snapshot:
    optimizer = make(name, backend, initial=99)
    load(optimizer, path)
    train(optimizer, BEFORE, AFTER)
    return snapshot(optimizer)


def resume_all(folder: Path) -> dict[tuple[str, str], Snapshot]:
    return {
        (name, backend): resume_in_this_process(name, backend, folder / f"{name}-{backend}.pt")
        for name in CONFIGURATIONS
        for backend in RUNNABLE_BACKENDS
    }


def test_saving_and_resuming_in_a_new_process_gives_the_same_bits(tmp_path: Path) -> None:
    uninterrupted = {}
    for name in CONFIGURATIONS:
        for backend in RUNNABLE_BACKENDS:
            optimizer = make(name, backend)
            train(optimizer, 0, BEFORE)
            save(optimizer, tmp_path / f"{name}-{backend}.pt")
            train(optimizer, BEFORE, AFTER)
            uninterrupted[name, backend] = snapshot(optimizer)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        resumed = pool.submit(resume_all, tmp_path).result()
    for key, expected in uninterrupted.items():
        assert_same_snapshots(resumed[key], expected)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_entry_keeps_its_dtype_when_loaded(name: str, backend: str) -> None:
    dtype, options = CONFIGURATIONS[name]
    optimizer = make(name, backend)
    train(optimizer, 0, BEFORE)
    loaded = reloaded(optimizer, make(name, backend, initial=99))
    assert_same_snapshots(snapshot(loaded), snapshot(optimizer))
    moments = {"exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if options.get("amsgrad") else set())
    for group in loaded.param_groups:
        for parameter in group["params"]:
            state = loaded.state[parameter]
            expected = {key: options.get("state_dtype") or dtype for key in moments} | {"step": torch.float32}
            if group["selective"]:
                expected |= {"importance": torch.float32, "rank_code": torch.uint8}
            assert {key: value.dtype for key, value in state.items()} == expected


def test_the_state_dict_holds_what_the_contract_says(backend: str) -> None:
    optimizer = make("float64", backend)
    train(optimizer, 0, BEFORE)
    saved = optimizer.state_dict()
    assert saved["state"].keys() == {0, 1, 2, 3, 4}
    assert saved["state"][0].keys() == {
        "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "importance", "rank_code",
    }  # fmt: skip
    for group in saved["param_groups"]:
        assert (group["seed"], group["refreshes"], group["steps_since_refresh"]) == (0, 2, 2)
        assert "backend" not in group
    assert saved.keys() == {"state", "param_groups"}


def test_a_checkpoint_of_one_backend_loads_into_another() -> None:
    """The backend is no part of it."""
    optimizer = make("float32", RUNNABLE_BACKENDS[0])
    train(optimizer, 0, BEFORE)
    for backend in RUNNABLE_BACKENDS:
        loaded = reloaded(optimizer, make("float32", backend))
        assert loaded.backend == backend
        train(loaded, BEFORE, 1)


def test_seed_and_counters_come_from_the_checkpoint(backend: str) -> None:
    optimizer = make("float32", backend, seed=5)
    train(optimizer, 0, BEFORE)
    loaded = reloaded(optimizer, make("float32", backend, seed=6))
    train(optimizer, BEFORE, AFTER)
    train(loaded, BEFORE, AFTER)
    assert_same_snapshots(snapshot(loaded), snapshot(optimizer))
    assert loaded.param_groups[0]["seed"] == 5


def test_a_checkpoint_from_before_the_first_step_loads(backend: str) -> None:
    optimizer = make("float32", backend)
    loaded = reloaded(optimizer, make("float32", backend, initial=99))
    train(optimizer, 0, BEFORE)
    train(loaded, 0, BEFORE)
    assert_same_snapshots(snapshot(loaded), snapshot(optimizer))


def test_a_checkpoint_taken_while_measuring_loads(backend: str) -> None:
    optimizer = make("float32", backend)
    with optimizer.measure_importance():
        train(optimizer, 0, 2)
    loaded = reloaded(optimizer, make("float32", backend, initial=99))
    for either in (optimizer, loaded):
        either.refresh()
        train(either, 2, BEFORE)
    assert_same_snapshots(snapshot(loaded), snapshot(optimizer))


def test_loading_twice_is_loading_once(backend: str) -> None:
    optimizer = make("bfloat16", backend)
    train(optimizer, 0, BEFORE)
    loaded = reloaded(optimizer, reloaded(optimizer, make("bfloat16", backend)))
    assert_same_snapshots(snapshot(loaded), snapshot(optimizer))
    for group, original in zip(
        loaded.state_dict()["param_groups"], optimizer.state_dict()["param_groups"], strict=True
    ):
        assert group.keys() == original.keys()


def test_hooks_on_loading_see_and_may_change_the_state_dict(backend: str) -> None:
    optimizer = make("float32", backend)
    train(optimizer, 0, BEFORE)
    other = make("float32", backend)

    def double_lr(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict = copy.deepcopy(state_dict)
        for group in state_dict["param_groups"]:
            group["lr"] *= 2
        return state_dict

    other.register_load_state_dict_pre_hook(double_lr)
    other.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.02, 0.006, 0.02]


# ------------------------------------------------------------------------------------------------------ foreign states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_state_dict_of_adamw_loads_with_one_warning_and_training_goes_on(dtype: torch.dtype, amsgrad: bool) -> None:
    values = [torch.randn(s, generator=torch.Generator().manual_seed(0)).to(dtype) for s in [(5, 4), (), (6,)]]
    theirs = [torch.nn.Parameter(value.clone()) for value in values]
    adamw = torch.optim.AdamW(theirs, lr=1e-2, foreach=False, amsgrad=amsgrad)

    def step(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], seed: int) -> None:
        for index, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(10 * seed + index)
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
        optimizer.step()

    for seed in range(4):
        step(adamw, theirs, seed)
    ours = [torch.nn.Parameter(parameter.detach().clone()) for parameter in theirs]
    roast = RoastAdamW(ours, lr=0.5, alpha=0.7, beta=4.0, seed=8, refresh_every=3, backend="reference", amsgrad=amsgrad)
    with pytest.warns(UserWarning, match="AdamW") as caught:
        roast.load_state_dict(copy.deepcopy(adamw.state_dict()))
    assert len(caught) == 1
    (group,) = roast.param_groups
    expected = {
        "alpha": 0.7, "beta": 4.0, "seed": 8, "selective": True, "refreshes": 0, "steps_since_refresh": 0, "lr": 1e-2,
    }  # fmt: skip
    assert {key: group[key] for key in expected} == expected
    for a in ours:
        assert roast.state[a]["importance"].dtype == torch.float32
        assert not roast.state[a]["importance"].any()
        assert roast.state[a]["rank_code"].dtype == torch.uint8
    for seed in range(4, 6):
        step(adamw, theirs, seed)
        step(roast, ours, seed)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same_bits(a.detach(), b.detach(), f"parameter {i}")
    step(roast, ours, 6)
    assert group["refreshes"] == 1


def test_a_state_dict_of_adamw_loads_without_a_warning_when_nothing_is_selective() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    adamw = torch.optim.AdamW([parameter])
    adamw.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        roast = RoastAdamW([parameter], selective=False, backend="reference")
        roast.load_state_dict(adamw.state_dict())
        roast.step()
    assert roast.state[parameter]["step"].item() == 2


def test_our_state_dict_loads_into_adamw(backend: str) -> None:
    """A user may go back."""
    optimizer = make("float32", backend)
    train(optimizer, 0, BEFORE)
    adamw = torch.optim.AdamW([{"params": group["params"]} for group in optimizer.param_groups])
    adamw.load_state_dict(optimizer.state_dict())
    adamw.step()
    assert adamw.state[adamw.param_groups[0]["params"][0]]["step"].item() == BEFORE + 1


@pytest.mark.parametrize(
    "damage",
    ["shape", "missing code", "missing importance", "alpha", "groups", "no groups", "negative", "nan", "code dtype"],
)
def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing(damage: str, backend: str) -> None:
    optimizer = make("float32", backend)
    train(optimizer, 0, BEFORE)
    saved = copy.deepcopy(optimizer.state_dict())
    match = {
        "shape": "importance of parameter 0 .*shape",
        "missing code": "parameter 0 lacks rank_code",
        "missing importance": "parameter 0 lacks importance",
        "alpha": r"alpha=7\.0",
        "groups": "parameter groups",
        "no groups": r"state_dict has no 'param_groups', only \['state'\]",
        "negative": r"importance of parameter 0 lies between -1\.0 .*damaged",
        "nan": "importance of parameter 0 lies between nan .*damaged",
        "code dtype": r"rank_code of parameter 0 is torch\.float32, not torch\.uint8",
    }[damage]
    if damage == "shape":
        saved["state"][0]["importance"] = torch.zeros(3)
    elif damage == "missing code":
        del saved["state"][0]["rank_code"]
    elif damage == "missing importance":
        del saved["state"][0]["importance"]
    elif damage == "alpha":
        saved["param_groups"][0]["alpha"] = 7.0
    elif damage == "no groups":
        del saved["param_groups"]
    elif damage in ("negative", "nan"):
        saved["state"][0]["importance"].view(-1)[0] = -1.0 if damage == "negative" else float("nan")
    elif damage == "code dtype":
        saved["state"][0]["rank_code"] = saved["state"][0]["rank_code"].float()
    else:
        saved["param_groups"].pop()
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(saved)
    assert_same_snapshots(before, snapshot(optimizer))
    train(optimizer, BEFORE, 1)


# ---------------------------------------------------------------------------------------------------------- copying


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_copy_goes_on_with_the_same_options_and_bits(copied: Any, name: str, backend: str) -> None:
    optimizer = make(name, backend)
    train(optimizer, 0, BEFORE)
    twin = copied(optimizer)
    assert twin.backend == backend
    assert twin.options == optimizer.options
    assert_same_snapshots(snapshot(twin), snapshot(optimizer))
    train(twin, BEFORE, AFTER)
    train(optimizer, BEFORE, AFTER)
    assert_same_snapshots(snapshot(twin), snapshot(optimizer))


def test_a_copy_is_independent(backend: str) -> None:
    optimizer = make("float32", backend)
    train(optimizer, 0, BEFORE)
    twin = copy.deepcopy(optimizer)
    before = snapshot(twin)
    train(optimizer, BEFORE, AFTER)
    assert_same_snapshots(before, snapshot(twin))


def test_a_copy_takes_new_parameter_groups(backend: str) -> None:
    twin = copy.deepcopy(make("float32", backend))
    twin.add_param_group({"params": [torch.nn.Parameter(torch.ones(4))]})
    train(twin, 0, BEFORE)
    assert twin.param_groups[-1]["alpha"] == 0.6
