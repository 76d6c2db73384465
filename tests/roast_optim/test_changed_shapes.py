"""Parameters whose shape changes in training, or is not known when the optimizer is made."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from roast_optim import RoastAdamW

OPTIONS: dict[str, Any] = {"lr": 1e-2, "alpha": 0.5, "beta": 5.0, "refresh_every": 2, "selective": True}


def trained(backend: str, steps: int = 3, **options: Any) -> tuple[nn.Parameter, RoastAdamW]:
    param = nn.Parameter(torch.ones(8, 4))
    optimizer = RoastAdamW([param, nn.Parameter(torch.ones(5))], backend=backend, **OPTIONS | options)
    for step in range(steps):
        for each in optimizer.param_groups[0]["params"]:
            each.grad = torch.arange(each.numel(), dtype=torch.float32).view_as(each) + step
        optimizer.step()
    return param, optimizer


def resized(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([tensor, torch.zeros(4, 4)]) if rows > 8 else tensor[:rows].clone()


@pytest.mark.parametrize("rows", [12, 5])
@pytest.mark.parametrize("in_place", [False, True], ids=["another parameter", "the same parameter"])
def test_a_parameter_resized_with_its_moments_trains_on(rows: int, in_place: bool, backend: str) -> None:
    param, optimizer = trained(backend)
    state = optimizer.state.pop(param)
    for moment in ("exp_avg", "exp_avg_sq"):
        state[moment] = resized(state[moment], rows)
    new = param if in_place else nn.Parameter(resized(param.data, rows))
    if in_place:
        param.grad = None
        param.data = resized(param.data, rows)
    optimizer.param_groups[0]["params"][0] = new
    optimizer.state[new] = state
    new.grad = torch.ones(rows, 4)
    with pytest.warns(UserWarning, match="shape of a parameter has changed, and importance and rank_code"):
        optimizer.step()
    assert state["step"] == 4
    assert state["importance"].shape == state["rank_code"].shape == (rows, 4)
    assert optimizer.positions[new].parameter_id == 0
    assert optimizer.selection_stats()["elements"] == 4 * rows + 5


def test_importance_that_fits_is_kept(backend: str) -> None:
    param, optimizer = trained(backend)
    state, new = optimizer.state.pop(param), nn.Parameter(param.detach().clone())
    before = state["importance"].clone()
    optimizer.param_groups[0]["params"][0] = new
    optimizer.state[new] = state
    new.grad = torch.zeros(8, 4)
    optimizer.param_groups[0]["params"][1].grad = None
    optimizer.options = type(optimizer.options)(**{**vars(optimizer.options), "refresh_every": None})
    optimizer.step()
    assert before.any()
    assert torch.equal(state["importance"], before)


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
def test_a_moment_that_was_not_resized_is_named_with_both_shapes(moment: str, backend: str) -> None:
    param, optimizer = trained(backend)
    state, new = optimizer.state.pop(param), nn.Parameter(torch.ones(12, 4))
    for other in {"exp_avg", "exp_avg_sq"} - {moment}:
        state[other] = resized(state[other], 12)
    optimizer.param_groups[0]["params"][0] = new
    optimizer.state[new] = state
    new.grad = torch.ones(12, 4)
    message = f"parameter 0 has shape (12, 4), its {moment} (8, 4)"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        optimizer.step()


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
def test_a_moment_that_is_gone_is_not_taken_for_zero(name: str, backend: str) -> None:
    param, optimizer = trained(backend)
    del optimizer.state[param][name]
    with pytest.raises(RuntimeError, match=rf"parameter 0, of shape \(8, 4\), has no {name}, only"):
        optimizer.step()


def test_pretrained_values_begin_anew_where_they_do_not_fit(backend: str) -> None:
    param, optimizer = trained(backend, pretrained_decay=0.1)
    state, new = optimizer.state.pop(param), nn.Parameter(torch.full((12, 4), 2.0))
    for moment in ("exp_avg", "exp_avg_sq"):
        state[moment] = resized(state[moment], 12)
    optimizer.param_groups[0]["params"][0] = new
    optimizer.state[new] = state
    new.grad = torch.ones(12, 4)
    with pytest.warns(UserWarning, match="importance and rank_code and pretrained"):
        optimizer.step()
    assert torch.equal(state["pretrained"], torch.full((12, 4), 2.0))


# ----------------------------------------------------------------------------------------------------------------- lazy


@pytest.mark.parametrize(
    "layer", [lambda: nn.LazyLinear(4), lambda: nn.LazyConv1d(4, 1)], ids=["linear", "convolution"]
)
def test_a_lazy_module_trains_as_one_that_never_was_lazy(layer: Any, backend: str) -> None:
    def gradients(model: nn.Module) -> None:
        model(torch.ones(3, 5, 5)).square().sum().backward()

    torch.manual_seed(0)
    model = nn.Sequential(layer(), nn.ReLU())
    optimizer = RoastAdamW(model.parameters(), backend=backend, **OPTIONS)
    assert optimizer.selection_stats()["elements"] == 0
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.refresh()
    torch.manual_seed(0)
    plain = nn.Sequential(layer(), nn.ReLU())
    gradients(plain)
    plain.zero_grad()
    expected = RoastAdamW(plain.parameters(), backend=backend, **OPTIONS)
    torch.manual_seed(0)
    model(torch.ones(3, 5, 5))
    model.load_state_dict(plain.state_dict())
    for _ in range(5):
        for each, own in ((model, optimizer), (plain, expected)):
            gradients(each)
            own.step()
            own.zero_grad()
    assert expected.refreshes == 2
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


def test_a_checkpoint_loads_before_a_lazy_parameter_has_a_shape(backend: str) -> None:
    first = nn.Sequential(nn.LazyLinear(4))
    first(torch.ones(2, 3)).sum().backward()
    saved = RoastAdamW(first.parameters(), backend=backend, **OPTIONS)
    saved.step()
    second = nn.Sequential(nn.LazyLinear(4))
    loaded = RoastAdamW(second.parameters(), backend=backend, **OPTIONS)
    loaded.load_state_dict(saved.state_dict())
    second(torch.ones(2, 3)).sum().backward()
    loaded.step()
    assert [int(state["step"]) for state in loaded.state.values()] == [2, 2]
