"""Buffers are given back as a pass left them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from roast_optim import model_buffers
from roast_optim.model_buffers import ModelBuffers


class Stateful(nn.Module):
    """Buffers of every habit."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("changed", torch.zeros(3))
        self.register_buffer("hidden_change", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(1))
        self.register_buffer("grown", torch.zeros(1))
        self.register_buffer("constant", torch.arange(3))
        self.register_buffer("absent", None)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        """Changes them, each in its way."""
        self.changed.add_(1)
        self.hidden_change.data.add_(1)
        self.replaced = self.replaced + 1
        self.grown = torch.zeros(len(self.grown) + 1)
        self.absent = torch.ones(1) if self.absent is None else self.absent + 1
        return self.norm(x)


def values(model: nn.Module) -> dict[str, list[float]]:
    return {name: buffer.flatten().tolist() for name, buffer in model.named_buffers()}


def test_a_second_pass_begins_where_the_first_did_and_leaves_what_that_left() -> None:
    torch.manual_seed(0)
    model, x = Stateful(), torch.randn(4, 3)
    buffers = ModelBuffers(model)
    begun = buffers.values()
    model(x)
    ended, expected = buffers.values(begun), values(model)
    buffers.go_back_to(begun)
    assert not model.changed.any()
    assert not model.hidden_change.any()
    assert not model.norm.running_mean.any()
    assert model.norm.num_batches_tracked == 0
    assert len(model.grown) == 2  # what was replaced stays: its size may have been noted elsewhere
    model(2 * x)
    assert values(model) != expected
    buffers.end_as(ended)
    assert values(model) == expected


def test_graphs_that_hold_a_buffer_stay_valid() -> None:
    model = Stateful()
    buffers = ModelBuffers(model)
    begun = buffers.values()
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * model.constant).sum()
    buffers.end_as(buffers.values(begun))
    loss.backward()
    assert torch.equal(weight.grad, torch.arange(3.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [True, False])
def test_a_large_buffer_is_copied_only_if_it_has_changed(monkeypatch: pytest.MonkeyPatch, changes: bool) -> None:
    monkeypatch.setattr(model_buffers, "_LARGE", 2)
    model = nn.Module()
    model.register_buffer("queue", torch.zeros(3))
    buffers = ModelBuffers(model)
    begun = buffers.values()
    assert begun.copies == [None]
    if changes:
        model.queue.add_(1)
    ended = buffers.values(begun)
    assert (ended.copies[0] is not None) == changes
    model.queue.add_(1)
    buffers.end_as(ended)
    assert model.queue.tolist() == [1.0] * 3


def test_a_model_without_buffers_has_nothing_to_give_back() -> None:
    buffers = ModelBuffers(nn.Linear(2, 2))
    buffers.end_as(buffers.values())
