"""Distributed checkpoints: saved by some number of processes, continued by another, bit for bit in masks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW, Optimizer

from roast_optim import RoastAdamW
from tests.distributed.processes import Failure, outcomes_in_processes, run_in_processes
from tests.distributed.training import (
    OPTIONS,
    REFRESH_EVERY,
    UNEVEN,
    assert_same_outcome,
    batch,
    network,
    outcome,
    single,
    train,
    whole,
)  # fmt: skip

pytestmark = pytest.mark.distributed

SAVED_AT = 6  # in the middle of an epoch, after a refresh


def _make(kind: type[Optimizer] = RoastAdamW, shard: bool = True, hidden: int = UNEVEN, **options: Any) -> Any:
    model = network(hidden)
    if shard:
        fully_shard(model)
    if kind is AdamW:
        return model, AdamW(model.parameters(), lr=1e-2, betas=(0.0, 0.99))
    return model, RoastAdamW(model.parameters(), backend="reference", **{**OPTIONS, **options})


def _save(folder: Path, kind: type[Optimizer] = RoastAdamW, **options: Any) -> None:
    model, optimizer = _make(kind, **options)
    train(model, optimizer, last=SAVED_AT)
    parameters, state = get_state_dict(model, optimizer)
    dcp.save({"model": parameters, "optimizer": state}, checkpoint_id=folder)


def _load(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    parameters, state = get_state_dict(model, optimizer)
    checkpoint = {"model": parameters, "optimizer": state}
    dcp.load(checkpoint, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=checkpoint["model"], optim_state_dict=checkpoint["optimizer"])


def _load_and_continue(folder: Path, shard: bool = True, **options: Any) -> dict[str, Any]:
    model, optimizer = _make(shard=shard, **options)
    _load(folder, model, optimizer)
    counters = {key: optimizer.param_groups[0][key] for key in ("seed", "refreshes", "steps_since_refresh")}
    train(model, optimizer, first=SAVED_AT)
    return {**outcome(model, optimizer), "counters": counters}


@pytest.mark.parametrize(("world_size", "shard"), [(4, True), (2, True), (1, True), (1, False)])
def test_a_checkpoint_of_four_processes_continues_in_any_number(tmp_path: Path, world_size: int, shard: bool) -> None:
    run_in_processes(4, _save, tmp_path)
    for result in run_in_processes(world_size, _load_and_continue, tmp_path, shard):
        assert result["counters"] == {"seed": 7, "refreshes": 1, "steps_since_refresh": SAVED_AT - REFRESH_EVERY}
        assert_same_outcome(result, single())


def test_a_checkpoint_of_one_process_continues_in_four(tmp_path: Path) -> None:
    run_in_processes(1, _save, tmp_path)
    for result in run_in_processes(4, _load_and_continue, tmp_path):
        assert_same_outcome(result, single())


def _save_bfloat16(folder: Path) -> None:
    model, optimizer = _make(state_dtype=torch.float32)
    model.bfloat16()
    for step in range(SAVED_AT):
        model(batch(step).bfloat16()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    parameters, state = get_state_dict(model, optimizer)
    dcp.save({"model": parameters, "optimizer": state}, checkpoint_id=folder)


def _load_bfloat16(folder: Path) -> dict[str, Any]:
    model, optimizer = _make(state_dtype=torch.float32)
    model.bfloat16()
    _load(folder, model, optimizer)
    return {key: value.dtype for key, value in optimizer.state[model.scale].items()}


def test_the_dtypes_of_the_state_survive(tmp_path: Path) -> None:
    run_in_processes(4, _save_bfloat16, tmp_path)
    for result in run_in_processes(2, _load_bfloat16, tmp_path):
        assert result == {
            "step": torch.float32, "exp_avg": torch.float32, "exp_avg_sq": torch.float32,
            "importance": torch.float32, "rank_code": torch.uint8,
        }  # fmt: skip


def _dummy_step() -> dict[str, Any]:
    """Asking for the state of an optimizer that has none makes a step with lr = 0 and zero gradients."""
    model, optimizer = _make()
    before = [whole(param) for param in model.parameters()]
    get_optimizer_state_dict(model, optimizer)
    for param, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(whole(param), value)
    assert all(int(state["step"]) == 0 for state in optimizer.state.values())
    train(model, optimizer)
    return outcome(model, optimizer)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_step_by_which_checkpoints_make_state_changes_nothing(world_size: int) -> None:
    for result in run_in_processes(world_size, _dummy_step):
        assert_same_outcome(result, single())


# ---------------------------------------------------------------------------------------------------- other checkpoints


def _continue_from_adamw(folder: Path, partial: bool) -> list[str]:
    model, optimizer = _make()
    parameters, state = get_state_dict(model, optimizer)
    checkpoint = {"model": parameters, "optimizer": state}
    dcp.load(checkpoint, checkpoint_id=folder, planner=DefaultLoadPlanner(allow_partial_load=partial))
    for entry in state["state"].values():  # what AdamW has not saved
        del entry["importance"], entry["rank_code"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_state_dict(model, optimizer, model_state_dict=parameters, optim_state_dict=state)
    for saved in optimizer.state.values():
        assert int(saved["step"]) == SAVED_AT
        assert whole(saved["exp_avg_sq"]).any()
        assert not whole(saved["importance"]).any()
    train(model, optimizer, first=SAVED_AT, last=SAVED_AT + REFRESH_EVERY)
    assert optimizer.param_groups[0]["refreshes"] == 1
    return [str(warning.message) for warning in caught if "without selection (AdamW)" in str(warning.message)]


def test_moments_of_plain_adamw_are_taken_which_every_process_says_once(tmp_path: Path) -> None:
    run_in_processes(4, _save, tmp_path, AdamW)
    assert [len(messages) for messages in run_in_processes(2, _continue_from_adamw, tmp_path, True)] == [1, 1]


def test_a_checkpoint_without_importance_is_refused_in_every_process_unless_it_may_be_partial(tmp_path: Path) -> None:
    run_in_processes(2, _save, tmp_path, AdamW)
    for result in outcomes_in_processes(2, _continue_from_adamw, tmp_path, False):
        assert isinstance(result, Failure)
        assert "Missing key" in result
        assert "importance" in result


def _load_plainly(saved_sharded: bool) -> str:
    """What a plain load_state_dict says to state that is sharded for parameters that are not, or the reverse."""
    saved_model, saved = _make(shard=saved_sharded)
    train(saved_model, saved, last=1)
    _, optimizer = _make(shard=not saved_sharded)
    with pytest.raises(ValueError, match="spread over processes") as caught:
        optimizer.load_state_dict(saved.state_dict())
    assert not optimizer.state
    return str(caught.value)


@pytest.mark.parametrize("saved_sharded", [True, False])
def test_state_that_is_not_sharded_as_its_parameter_is_refused(saved_sharded: bool) -> None:
    for message in run_in_processes(2, _load_plainly, saved_sharded):
        assert "set_optimizer_state_dict" in message


def _continue_another_model(folder: Path) -> None:
    _load(folder, *_make(hidden=9))


def test_a_checkpoint_of_another_model_is_refused_in_every_process(tmp_path: Path) -> None:
    run_in_processes(2, _save, tmp_path)
    for result in outcomes_in_processes(2, _continue_another_model, tmp_path):
        assert isinstance(result, Failure)
        assert "Size mismatch between saved torch.Size([13, 6]) and current: torch.Size([9, 6])" in result
