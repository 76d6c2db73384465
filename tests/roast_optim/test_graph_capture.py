"""What a CUDA graph cannot hold is refused while it is captured. No GPU is needed: that one is captured is made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from roast_optim import RoastAdamW, graph_capture, masking
from roast_optim.graph_capture import refuse_capture_of_step
from roast_optim.masking import selection_tables
from roast_optim.step_options import prepare_selections
from tests.support.snapshot import assert_same_snapshots, snapshot


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_capture, "capturing", lambda: True)


def ready(**options: Any) -> RoastAdamW:
    """Measured, ranked and stepped once, as the documentation asks; on the device "meta", which is no CPU."""
    chosen = {"capturable": True, "refresh_every": None, "backend": "reference", **options}
    params = [nn.Parameter(torch.ones(4, device="meta")), nn.Parameter(torch.ones(2, 3, device="meta"))]
    optimizer = RoastAdamW([{"params": params[:1]}, {"params": params[1:]}], **chosen)
    for group in optimizer.param_groups:
        group["refreshes"] = int(group["selective"])
        for param in group["params"]:
            param.grad = torch.ones_like(param)
            optimizer.parameters.state_of(param, group, optimizer.state[param], optimizer.positions[param])
    return optimizer


def check(optimizer: RoastAdamW, *, measuring: bool = False, has_stepped: bool = True) -> None:
    refuse_capture_of_step(optimizer.param_groups, optimizer.state, optimizer.options, measuring, has_stepped)


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": torch.tensor(1e-3), "amsgrad": True, "pretrained_decay": 0.1},
        {"selection": "update", "importance": "random", "importance_every": 4},
        {"selective": False, "mask_schedule": "refresh", "refresh_every": 8, "importance_every": 2},
    ],
    ids=str,
)
def test_what_replays_right_can_be_captured(options: dict[str, Any]) -> None:
    check(ready(**options))


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize(
    ("options", "names", "cure"),
    [
        ({"capturable": False}, "capturable=False", "capturable=True"),
        ({"refresh_every": 3}, "refresh_every=3", "call refresh\\(\\) between replays"),
        ({"mask_schedule": "refresh"}, 'mask_schedule="refresh"', 'mask_schedule="step"'),
        ({"importance_every": 4}, "importance_every=4", "importance_every=1"),
        ({"capturable": False, "selective": False}, "capturable=False", "capturable=True"),
    ],
    ids=str,
)
def test_an_option_that_the_host_follows_is_refused_with_its_name_and_the_cure(
    options: dict[str, Any], names: str, cure: str
) -> None:
    with pytest.raises(RuntimeError, match=f"a CUDA graph cannot hold this step: .*{names}.*: .*{cure}"):
        check(ready(**options))
    check(ready(**options), measuring=True)  # which accumulates importance and does nothing else


@pytest.mark.usefixtures("captured")
def test_one_group_of_several_is_enough() -> None:
    optimizer = ready()
    optimizer.param_groups[1]["capturable"] = False
    with pytest.raises(RuntimeError, match="capturable=False of group 1"):
        check(optimizer)
    optimizer = ready()
    optimizer.param_groups[1]["refreshes"] = 0
    with pytest.raises(
        RuntimeError, match=r"group 1 has no ranks.*measure_importance\(\).*refresh\(\).*one step before"
    ):
        check(optimizer)
    optimizer.param_groups[1]["selective"] = False
    check(optimizer)


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("name", ["step", "exp_avg", "importance", "pretrained"])
def test_a_parameter_without_state_is_refused(name: str) -> None:
    optimizer = ready(pretrained_decay=0.1)
    param = optimizer.param_groups[1]["params"][0]
    del optimizer.state[param][name]
    with pytest.raises(RuntimeError, match=f"parameter 1 has no {name} yet.*take one step before the capture"):
        check(optimizer)
    param.grad = None  # it takes no part in the step
    check(optimizer)


@pytest.mark.usefixtures("captured")
def test_everything_in_the_way_is_said_at_once() -> None:
    with pytest.raises(RuntimeError, match=r"has taken no step yet.*capturable=False.*refresh_every=2"):
        check(ready(capturable=False, refresh_every=2), has_stepped=False)


@pytest.mark.usefixtures("captured")
def test_the_optimizer_asks_before_it_changes_anything(backend: str) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = RoastAdamW([param], backend=backend, refresh_every=None)
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"has taken no step yet"):
        optimizer.step()
    assert not optimizer.state
    with pytest.raises(RuntimeError, match=r"cannot hold refresh\(\).*between replays"):
        optimizer.refresh()
    assert not optimizer.state


def test_a_step_that_is_refused_changes_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = RoastAdamW([param], backend=backend, refresh_every=None, capturable=True)
    param.grad = torch.ones(3)
    optimizer.step()
    before = snapshot(optimizer)
    monkeypatch.setattr(graph_capture, "capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"parameter 0 lies on the CPU.*move it to the GPU"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="refresh"):
        optimizer.refresh()
    assert_same_snapshots(snapshot(optimizer), before)


def test_tables_of_a_selection_are_not_copied_within_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"alpha=0\.125 and beta=7\.5 are new on cuda:0.*take one step with them"):
        selection_tables(0.125, 7.5, True, torch.device("cuda", 0))


def test_a_refresh_leaves_nothing_to_be_copied_by_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = RoastAdamW([param], alpha=0.375, beta=3.25, refresh_every=None)
    param.grad = torch.ones(3)
    optimizer.step()
    optimizer.refresh()
    misses = selection_tables.cache_info().misses
    optimizer.step()
    assert selection_tables.cache_info().misses == misses
    optimizer.param_groups[0]["alpha"] = 0.4375
    prepare_selections(optimizer.param_groups, optimizer.options)
    assert selection_tables.cache_info().misses == misses + 1
