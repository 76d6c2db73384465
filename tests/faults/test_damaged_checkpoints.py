"""A damaged or foreign checkpoint is refused and changes nothing, or it loads and training goes on."""

from __future__ import annotations

import copy
import io
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from roast_optim import RoastAdamW
from tests.support.snapshot import assert_same_snapshots, snapshot

SHAPES: list[list[tuple[int, ...]]] = [[(7, 9), (5,)], [(11,)]]
STEPS = 5  # with a refresh every three: masks are active and importance is there
FLIPS = 200
NAN = float("nan")
MISSING = object()
KEYS = (
    "state", "param_groups", "params", "step", "exp_avg", "exp_avg_sq", "importance", "rank_code", "lr", "betas", "eps",
    "weight_decay", "alpha", "beta", "seed", "refreshes", "steps_since_refresh",
)  # fmt: skip

Damage = Callable[[dict[str, Any]], None]


def make(kind: type[Optimizer] = RoastAdamW, **options: Any) -> Optimizer:
    """A new optimizer of new parameters, all of them made alike."""
    generator = torch.Generator().manual_seed(0)
    parameters = [[torch.nn.Parameter(torch.randn(s, generator=generator)) for s in group] for group in SHAPES]
    if kind is RoastAdamW:
        options = {"alpha": 0.6, "beta": 3.0, "refresh_every": 3, "seed": 4, **options}
    return kind([{"params": group} for group in parameters], **{"lr": 1e-2, **options})


def train(optimizer: Optimizer, first: int = 0, count: int = STEPS) -> None:
    """Steps `first` to `first + count - 1` of a run whose gradients depend on the step alone."""
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(1000 + step)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def trained(kind: type[Optimizer] = RoastAdamW, **options: Any) -> Optimizer:
    optimizer = make(kind, **options)
    train(optimizer)
    return optimizer


def written(state_dict: object) -> bytes:
    file = io.BytesIO()
    torch.save(state_dict, file)
    return file.getvalue()


def damaged(optimizer: Optimizer, damage: Damage) -> dict[str, Any]:
    """What a file holds whose state_dict was damaged before it was written."""
    state_dict = copy.deepcopy(optimizer.state_dict())
    damage(state_dict)
    result: dict[str, Any] = torch.load(io.BytesIO(written(state_dict)), weights_only=True)
    return result


def changed(*path: Any, to: object = MISSING) -> Damage:
    """Put another value at that path, or none."""

    def damage(state_dict: dict[str, Any]) -> None:
        place: Any = state_dict
        for key in path[:-1]:
            place = place[key]
        if to is MISSING:
            del place[path[-1]]
        else:
            place[path[-1]] = to

    return damage


def assert_refused(state_dict: object, backend: str, match: str) -> None:
    """Loading raises, changes no bit, and the optimizer goes on as one that never tried."""
    optimizer, twin = trained(backend=backend), trained(backend=backend)
    with pytest.raises((ValueError, TypeError), match=match):
        optimizer.load_state_dict(state_dict)  # type: ignore[arg-type]
    assert_same_snapshots(snapshot(optimizer), snapshot(twin))
    train(optimizer, STEPS)
    train(twin, STEPS)
    assert_same_snapshots(snapshot(optimizer), snapshot(twin))


# ------------------------------------------------------------------------------------------------------ bytes of a file


@pytest.mark.parametrize("length", ["0", "1", "100", "25%", "50%", "75%", "all but one"])
def test_a_truncated_file_is_not_read_and_changes_nothing(length: str, tmp_path: Path, backend: str) -> None:
    optimizer, twin = trained(backend=backend), trained(backend=backend)
    data = written(optimizer.state_dict())
    if length == "all but one":
        kept = len(data) - 1
    else:
        kept = len(data) * int(length[:-1]) // 100 if length.endswith("%") else int(length)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(data[:kept])
    with pytest.raises((RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError)):
        optimizer.load_state_dict(torch.load(path, weights_only=True))
    train(optimizer, STEPS)
    train(twin, STEPS)
    assert_same_snapshots(snapshot(optimizer), snapshot(twin))


def test_a_file_with_a_flipped_byte_is_refused_and_changes_nothing_or_loads_and_training_goes_on(backend: str) -> None:
    data = written(trained(backend=backend).state_dict())
    optimizer = make(backend=backend)
    train(optimizer, count=2)  # not what the file holds: a load that is left half done shows
    assert isinstance(optimizer, RoastAdamW)
    flips = random.Random(0)
    outcomes = {"not read": 0, "refused": 0, "loaded": 0}
    for position in flips.sample(range(len(data)), FLIPS):
        flipped = bytearray(data)
        flipped[position] ^= flips.randrange(1, 256)
        chosen = copy.deepcopy(optimizer)
        try:
            state_dict = torch.load(io.BytesIO(bytes(flipped)), weights_only=True)
        except Exception:  # whatever torch makes of it
            outcomes["not read"] += 1
            continue
        refusal = ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it may pass for a state_dict of AdamW
                chosen.load_state_dict(state_dict)
        except (ValueError, KeyError, TypeError) as error:
            refusal = str(error)
        if refusal:
            assert any(key in refusal for key in KEYS), refusal
            assert_same_snapshots(snapshot(chosen), snapshot(optimizer))
            outcomes["refused"] += 1
        train(chosen, STEPS, 3)
        chosen.refresh()
        train(chosen, STEPS + 3, 1)
        outcomes["loaded"] += not refusal
    assert all(outcomes.values()), outcomes


# --------------------------------------------------------------------------------------------------------- missing keys


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("parameter", [0, 2])
def test_a_missing_moment_is_named_with_its_parameter(key: str, parameter: int, backend: str) -> None:
    state_dict = damaged(trained(backend=backend), changed("state", parameter, key))
    assert_refused(state_dict, backend, f"parameter {parameter} lacks {key}\\b")


def test_missing_state_or_parameters_are_named(backend: str) -> None:
    saved = trained(backend=backend)
    assert_refused(damaged(saved, changed("state")), backend, "no 'state'")
    assert_refused(damaged(saved, changed("param_groups", 1, "params")), backend, "group 1 .* has no 'params'")


OWN = {
    "lr": 0.5, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.2, "alpha": 0.1, "beta": 9.0, "selective": False,
    "seed": 17,
}  # fmt: skip


@pytest.mark.parametrize("key", ["lr", "betas", "eps", "weight_decay"])
def test_a_missing_option_of_adamw_is_the_groups_own(key: str, backend: str) -> None:
    """AdamW loads such a state_dict too, and fails in its next step."""
    state_dict = damaged(trained(backend=backend), changed("param_groups", 0, key))
    make(torch.optim.AdamW).load_state_dict(state_dict)
    optimizer = make(backend=backend)
    optimizer.param_groups[0].update(OWN)
    optimizer.load_state_dict(state_dict)
    saved = {name: value for name, value in state_dict["param_groups"][0].items() if name != "params"}
    assert {name: optimizer.param_groups[0][name] for name in [*saved, key]} == {**saved, key: OWN[key]}
    train(optimizer, STEPS)


def test_from_adamw_every_group_keeps_its_own_options_of_selection(backend: str) -> None:
    """Above all those that `selective_param_groups` has excluded stay excluded."""
    state_dict = trained(torch.optim.AdamW).state_dict()
    optimizer = make(backend=backend)
    optimizer.param_groups[1].update({"alpha": 0.3, "beta": 2.0, "selective": False, "seed": 5})
    with pytest.warns(UserWarning, match="without selection"):
        optimizer.load_state_dict(state_dict)
    names = ("alpha", "beta", "selective", "seed", "refreshes")
    assert [tuple(group[name] for name in names) for group in optimizer.param_groups] == [
        (0.6, 3.0, True, 4, 0), (0.3, 2.0, False, 5, 0),
    ]  # fmt: skip
    train(optimizer, STEPS)
    assert "rank_code" not in optimizer.state[optimizer.param_groups[1]["params"][0]]


@pytest.mark.parametrize("key", ["alpha", "beta", "selective", "seed", "refreshes", "steps_since_refresh"])
def test_rank_codes_without_what_gives_them_a_meaning_are_refused(key: str, backend: str) -> None:
    state_dict = damaged(trained(backend=backend), changed("param_groups", 1, key))
    assert_refused(state_dict, backend, f"group 1 has rank codes but no '{key}'")


# --------------------------------------------------------------------------------------------------------- foreign keys


@pytest.mark.parametrize(
    "damage",
    [
        changed("state", 0, "foreign", to=torch.ones(3)),
        changed("param_groups", 0, "foreign", to="anything"),
        changed("foreign", to=1),
        changed("state", 99, to={"step": torch.tensor(1.0)}),
    ],
    ids=["of a parameter", "of a group", "at top level", "state of no parameter"],
)
def test_a_foreign_key_loads_as_in_adamw_and_changes_no_step(damage: Damage, backend: str) -> None:
    theirs = trained(torch.optim.AdamW)
    make(torch.optim.AdamW).load_state_dict(damaged(theirs, damage))
    saved, optimizer, twin = trained(backend=backend), trained(backend=backend), trained(backend=backend)
    optimizer.load_state_dict(damaged(saved, damage))
    twin.load_state_dict(saved.state_dict())
    train(optimizer, STEPS)
    train(twin, STEPS)
    for group in optimizer.param_groups:
        group.pop("foreign", None)
        for parameter in group["params"]:
            optimizer.state[parameter].pop("foreign", None)
    assert_same_snapshots(snapshot(optimizer), snapshot(twin))


@pytest.mark.parametrize(
    ("kind", "options"), [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adagrad, {}), (torch.optim.Rprop, {})]
)
def test_a_state_dict_without_moments_of_adamw_is_refused(
    kind: type[Optimizer], options: dict[str, Any], backend: str
) -> None:
    assert_refused(trained(kind, **options).state_dict(), backend, "parameter 0 lacks exp_avg")


def test_a_state_dict_of_adam_with_amsgrad_loads_as_in_adamw(backend: str) -> None:
    saved = trained(torch.optim.Adam, amsgrad=True, weight_decay=0.1).state_dict()
    theirs, ours = make(torch.optim.AdamW, foreach=False), make(backend=backend, refresh_every=None)
    theirs.load_state_dict(copy.deepcopy(saved))
    with pytest.warns(UserWarning, match="without selection"):
        ours.load_state_dict(copy.deepcopy(saved))
    train(theirs, STEPS)
    train(ours, STEPS)
    for their_group, our_group in zip(theirs.param_groups, ours.param_groups, strict=True):
        assert our_group["amsgrad"]
        for their_parameter, our_parameter in zip(their_group["params"], our_group["params"], strict=True):
            torch.testing.assert_close(our_parameter, their_parameter)
            torch.testing.assert_close(
                ours.state[our_parameter]["max_exp_avg_sq"], theirs.state[their_parameter]["max_exp_avg_sq"]
            )


# ----------------------------------------------------------------------------------------------- wrong types and values


@pytest.mark.parametrize("whole", [{}, {"optimizer": {}}], ids=str)
def test_what_has_neither_state_nor_groups_is_refused_by_name(whole: object, backend: str) -> None:
    assert_refused(whole, backend, "no 'state'.*pass what state_dict")


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", -1), ("seed", "4"), ("seed", None), ("seed", 0.5), ("lr", NAN), ("alpha", NAN), ("beta", NAN),
     ("betas", (0.9, NAN)), ("eps", NAN), ("weight_decay", NAN)],
)  # fmt: skip
def test_a_group_option_that_no_optimizer_has_is_named_with_its_value(key: str, value: object, backend: str) -> None:
    state_dict = damaged(trained(backend=backend), changed("param_groups", 1, key, to=value))
    assert_refused(state_dict, backend, f"invalid {key}=.*{str(value).strip('()')}")


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "importance", "rank_code"])
@pytest.mark.parametrize("value", [torch.tensor(1, dtype=torch.uint8), torch.ones(12), "moment", None, 1.0], ids=str)
def test_a_state_that_is_no_tensor_of_its_shape_is_named(key: str, value: object, backend: str) -> None:
    state_dict = damaged(trained(backend=backend), changed("state", 2, key, to=value))
    wrong = f"{key} of parameter 2 has shape" if isinstance(value, torch.Tensor) else f"parameter 2 lacks {key}\\b"
    assert_refused(state_dict, backend, wrong)


@pytest.mark.parametrize("whole", [None, "state", 3, [], torch.ones(2)], ids=str)
def test_what_is_no_dictionary_is_named_by_its_type(whole: object, backend: str) -> None:
    assert_refused(whole, backend, f"state_dict is of type {type(whole).__name__}: pass what")


@pytest.mark.parametrize("value", ["x", [0.5], torch.ones(3), None], ids=str)
@pytest.mark.parametrize(
    ("path", "match"),
    [
        (("state",), "its 'state' is of type"),
        (("state", 0), "the state of parameter 0 is of type"),
        (("param_groups",), "param_groups"),
        (("param_groups", 0), "group 0 of its 'param_groups' is of type"),
        (("param_groups", 0, "params"), "params|parameter groups of sizes"),
        *((("param_groups", 0, option), f"invalid {option}=") for option in (*OWN, "refreshes", "steps_since_refresh")),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_value_of_another_type_is_named(path: tuple[Any, ...], match: str, value: Any, backend: str) -> None:
    assert_refused(damaged(trained(backend=backend), changed(*path, to=value)), backend, match)


@pytest.mark.parametrize("step", [NAN, -1.0, 1.5, 2.0**33, None, "5", torch.ones(2), torch.tensor(1j)], ids=str)
def test_what_counts_no_steps_is_named(step: Any, backend: str) -> None:
    value = torch.tensor(step) if isinstance(step, float) else step
    state_dict = damaged(trained(backend=backend), changed("state", 1, "step", to=value))
    assert_refused(state_dict, backend, "step of parameter 1 is")


def test_a_step_count_may_be_a_number_as_adamw_of_old_saved_it(backend: str) -> None:
    saved = trained(backend=backend)
    optimizer, twin = trained(backend=backend), trained(backend=backend)
    optimizer.load_state_dict(damaged(saved, changed("state", 1, "step", to=STEPS)))
    train(optimizer, STEPS)
    train(twin, STEPS)
    assert_same_snapshots(snapshot(optimizer), snapshot(twin))


@pytest.mark.parametrize("count", [-1, 1.5, NAN, 2**32])
@pytest.mark.parametrize("key", ["refreshes", "steps_since_refresh"])
def test_what_counts_no_refreshes_is_named(key: str, count: Any, backend: str) -> None:
    state_dict = damaged(trained(backend=backend), changed("param_groups", 0, key, to=count))
    assert_refused(state_dict, backend, f"invalid {key}={count}")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "importance", "rank_code"])
def test_a_state_of_another_kind_of_dtype_is_named(key: str, dtype: torch.dtype, backend: str) -> None:
    state_dict = trained(backend=backend).state_dict()
    value = state_dict["state"][0][key].to(dtype)
    state_dict = damaged(trained(backend=backend), changed("state", 0, key, to=value))
    assert_refused(state_dict, backend, f"{key} of parameter 0 is {dtype}")


def test_a_sparse_moment_is_named(backend: str) -> None:
    state_dict = copy.deepcopy(trained(backend=backend).state_dict())
    state_dict["state"][0]["exp_avg"] = state_dict["state"][0]["exp_avg"].to_sparse()
    assert_refused(state_dict, backend, r"exp_avg of parameter 0 is torch\.sparse_coo")


def test_an_expanded_moment_gets_memory_of_its_own(backend: str) -> None:
    state_dict = copy.deepcopy(trained(backend=backend).state_dict())
    state_dict["state"][2]["exp_avg"] = torch.tensor(0.5).expand(11)
    optimizer = make(backend=backend)
    optimizer.load_state_dict(state_dict)
    train(optimizer, STEPS)


def test_a_parameter_that_two_groups_name_is_refused(backend: str) -> None:
    state_dict = damaged(trained(backend=backend), changed("param_groups", 1, "params", to=[0]))
    assert_refused(state_dict, backend, "name parameter 0 twice")


def test_a_warning_that_is_an_error_changes_nothing(backend: str) -> None:
    optimizer, twin = trained(backend=backend), trained(backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="without selection"):
            optimizer.load_state_dict(trained(torch.optim.AdamW).state_dict())
    assert_same_snapshots(snapshot(optimizer), snapshot(twin))
    train(optimizer, STEPS)
    train(twin, STEPS)
    assert_same_snapshots(snapshot(optimizer), snapshot(twin))


def test_a_hook_that_raises_after_loading_changes_nothing(backend: str) -> None:
    optimizer, twin = trained(backend=backend), trained(backend=backend)

    def fail(_: Optimizer) -> None:
        raise ArithmeticError("of the hook")

    handle = optimizer.register_load_state_dict_post_hook(fail)
    other = trained(backend=backend)
    train(other, STEPS)
    with pytest.raises(ArithmeticError, match="of the hook"):
        optimizer.load_state_dict(other.state_dict())
    handle.remove()
    train(optimizer, STEPS)
    train(twin, STEPS)
    assert_same_snapshots(snapshot(optimizer), snapshot(twin))
