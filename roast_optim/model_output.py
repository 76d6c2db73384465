"""Loss and logits in whatever a model takes and returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn


class AdversarialOutput(NamedTuple):
    """What :class:`.AdversarialEmbedding` returns in training mode where the model returns a plain tensor.

    Attributes:
        loss: the whole objective, a scalar.
        logits: the model's output in the clean pass.
    """

    loss: Tensor
    logits: Tensor


def argument(model: nn.Module, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The argument of a call to ``model``, by keyword or by position; None if it is absent."""
    if name in kwargs:
        return kwargs[name]
    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False)).get(name)


def loss_and_logits(output: Any, labels: Any, loss_fn: Callable[[Any, Any], Tensor] | None) -> tuple[Tensor, Tensor]:
    """What the model returned as loss, or ``loss_fn`` makes of it, and the logits.

    In a tuple the logits come after the loss, or first if ``loss_fn`` is to compute the loss.

    Raises:
        ValueError: there is no scalar loss, or there are no logits.
    """
    if loss_fn is not None:
        loss = loss_fn(output, labels)
        logits = output if isinstance(output, Tensor) else _item(output, 0, "logits")
    elif isinstance(output, Tensor):
        raise ValueError("loss_fn=None: the model returns a plain tensor; pass loss_fn=, a function of it and labels")
    else:
        loss, logits = _item(output, 0, "loss"), _item(output, 1, "logits")
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        missing = "labels=None: " if labels is None else ""
        raise ValueError(
            f"{missing}the loss in training mode is {found}, not a scalar tensor; pass labels= that the model computes "
            "its loss from, or loss_fn= to compute it"
        )
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the model's output, {type(output).__name__}, has no logits for the consistency loss; it must be a "
            "tensor, a tuple (loss, logits, ...), or have .logits"
        )
    return loss, logits


def with_loss(output: Any, loss: Tensor, *, loss_is_new: bool) -> Any:
    """The output with ``loss`` as its loss: in the place of the one that it has, unless ``loss_is_new``."""
    if isinstance(output, Tensor):
        return AdversarialOutput(loss, output)
    if isinstance(output, tuple):
        return (loss, *(output if loss_is_new else output[1:]))
    if isinstance(output, Mapping):
        output["loss"] = loss  # type: ignore[index]
    else:
        output.loss = loss
    return output


def _item(output: Any, index: int, name: str) -> Any:
    if isinstance(output, tuple):
        return output[index] if index < len(output) else None
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
