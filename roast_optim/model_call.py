"""What a model is called with, and the loss and the logits in what it returns."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .model_wrappers import unwrapped


class AdversarialOutput(NamedTuple):
    """What :class:`.AdversarialEmbedding` returns in training mode where the model returns a plain tensor.

    Attributes:
        loss: the whole objective, a scalar.
        logits: the model's output in the clean pass.
    """

    loss: Tensor
    logits: Tensor


class ModelCall:
    """A model and what it is called with.

    Args:
        model: to be called, in whatever wrapper.
        args: its positional arguments.
        kwargs: its keyword arguments.
        labels: those that the loss is computed from, if they are not among the arguments.

    Attributes:
        num_items: ``num_items_in_batch``, if it is among the arguments, there and here as a leaf: only its gradient
            tells whether the model divides its loss by it. Many models take it and do not.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], labels: Any = None) -> None:
        self.model = model
        self.args = args
        self.kwargs = dict(kwargs)
        self.labels = self.argument("labels") if labels is None else labels
        self.num_items: Tensor | None = None
        if kwargs.get("num_items_in_batch") is not None:
            num_items = torch.as_tensor(kwargs["num_items_in_batch"], dtype=torch.float32)
            self.num_items = self.kwargs["num_items_in_batch"] = num_items.detach().clone().requires_grad_()

    @property
    def config(self) -> Any:
        """The config that models of transformers have; None without one."""
        return getattr(unwrapped(self.model), "config", None)

    @property
    def labels_are_shifted(self) -> bool:
        """Does the prediction at a token belong to the label of the next one, as in a decoder-only language model?"""
        can_generate = getattr(unwrapped(self.model), "can_generate", None)
        return can_generate is not None and can_generate() and not getattr(self.config, "is_encoder_decoder", False)

    def argument(self, name: str) -> Any:
        """The argument of that name, by keyword or by position; None if it is absent."""
        if name in self.kwargs:
            return self.kwargs[name]
        parameters = inspect.signature(unwrapped(self.model).forward).parameters
        return dict(zip(parameters, self.args, strict=False)).get(name)

    def on_leaves(self) -> tuple[ModelCall, list[Tensor], list[Tensor]]:
        """The call cut off from the graph of its inputs; the inputs that require a gradient; the leaves for them."""
        values, structure = tree_flatten((self.args, self.kwargs))
        inputs: list[Tensor] = []
        leaves: list[Tensor] = []
        for index, value in enumerate(values):
            if isinstance(value, Tensor) and value.requires_grad and value is not self.num_items:
                values[index] = value.detach().requires_grad_()
                inputs.append(value)
                leaves.append(values[index])
        call = copy.copy(self)
        call.args, call.kwargs = tree_unflatten(values, structure)
        return call, inputs, leaves


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
