"""What wraps a model is taken off, and told."""

from __future__ import annotations

import torch

from roast_optim.model_wrappers import is_compiled, is_fully_sharded, unwrapped
from tests.models import PlainClassifier


def test_wrappers_are_taken_off() -> None:
    model = PlainClassifier()
    assert unwrapped(model) is model
    assert unwrapped(torch.compile(model, backend="eager")) is model


def test_a_plain_model_is_neither_compiled_nor_sharded() -> None:
    model = PlainClassifier()
    assert not is_compiled(model)
    assert not is_fully_sharded(model)
    assert is_compiled(torch.compile(model, backend="eager"))
    model.compile(backend="eager")
    assert is_compiled(model)
