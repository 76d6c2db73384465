"""What a model is called with, for every pass anew."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from .model_wrappers import unwrapped

_DEEPEST_TENSOR = 4  # as a cache of keys and values holds them: object, list of layers, layer, tensor


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
        """Does the prediction at a token belong to the label of the next one?"""
        return predicts_next_label(unwrapped(self.model))

    def argument(self, name: str) -> Any:
        """The argument of that name, by keyword or by position; None if it is absent."""
        return argument_of(unwrapped(self.model), self.args, self.kwargs, name)

    def for_one_pass(self) -> ModelCall:
        """The call with containers and tensors of its own, so that a model that changes them changes no other pass."""
        return self._with_tensors(Tensor.clone)

    def with_rows(self, cut: Callable[[Tensor], Tensor], samples: int) -> ModelCall | None:
        """The call with ``cut`` of every tensor whose first dimension is ``samples``; None if there is none."""
        found = False

        def cut_if_it_fits(value: Tensor) -> Tensor:
            nonlocal found
            if value.ndim == 0 or len(value) != samples:
                return value
            found = True
            return cut(value)

        call = self._with_tensors(cut_if_it_fits)
        return call if found else None

    def on_leaves(self) -> tuple[ModelCall, list[Tensor], list[Tensor]]:
        """The call cut off from the graph of its inputs; the inputs that require a gradient; the leaves for them."""
        inputs: list[Tensor] = []
        leaves: list[Tensor] = []

        def cut_off(value: Tensor) -> Tensor:
            if not value.requires_grad:
                return value
            inputs.append(value)
            leaves.append(value.detach().requires_grad_())
            return leaves[-1]

        return self._with_tensors(cut_off), inputs, leaves

    def _with_tensors(self, replace: Callable[[Tensor], Tensor]) -> ModelCall:
        replaced: dict[int, tuple[Any, Any]] = {id(self.num_items): (self.num_items, self.num_items)}
        call = copy.copy(self)
        # Together: a tensor that is given twice, as labels too, stays one.
        call.args, call.kwargs, call.labels = (
            with_tensors(value, replace, replaced) for value in (self.args, self.kwargs, self.labels)
        )
        return call


def predicts_next_label(model: nn.Module) -> bool:
    """Is it a decoder-only language model of transformers?"""
    can_generate = getattr(model, "can_generate", None)
    is_encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return can_generate is not None and can_generate() and not is_encoder_decoder


def argument_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    """The argument of that name, by keyword or by position, of a call of ``module``; None if it is absent."""
    if name in kwargs:
        return kwargs[name]
    parameters = inspect.signature(module.forward).parameters
    return dict(zip(parameters, args, strict=False)).get(name)


def with_tensors(value: Any, replace: Callable[[Tensor], Tensor], replaced: dict[int, tuple[Any, Any]]) -> Any:
    """``value`` with what ``replace`` makes of its tensors, in containers of its own.

    Args:
        value: tensors in tuples, lists, dicts, mappings and plain objects, as deep as they are nested. An object that
            holds no tensor is not copied; one with a method ``clone`` is cloned instead, if it holds tensors.
        replace: what becomes of each tensor.
        replaced: what has been replaced already, by its id, with the original, which must outlive it.
    """
    if id(value) in replaced:
        return replaced[id(value)][1]

    def remember(result: Any) -> Any:
        replaced[id(value)] = value, result
        return result

    if isinstance(value, Tensor):
        return remember(replace(value))
    if isinstance(value, tuple):
        items = [with_tensors(item, replace, replaced) for item in value]
        if all(item is original for item, original in zip(items, value, strict=True)):
            return value
        return remember(type(value)(*items) if hasattr(value, "_fields") else type(value)(items))
    # Remembered before what they hold, which may be themselves.
    if isinstance(value, list):
        result = remember(copy.copy(value))
        result[:] = [with_tensors(item, replace, replaced) for item in value]
        return result
    if isinstance(value, MutableMapping):
        result = remember(copy.copy(value))
        for key, item in value.items():
            result[key] = with_tensors(item, replace, replaced)
        return result
    # A cache of keys and values may still be empty.
    changes = hasattr(value, "get_seq_length") or _holds_tensor(value, _DEEPEST_TENSOR)
    if not _is_plain_object(value) or not changes:
        return value
    if callable(getattr(value, "clone", None)):
        return remember(value.clone())
    result = remember(copy.copy(value))
    vars(result).update({key: with_tensors(item, replace, replaced) for key, item in vars(value).items()})
    return result


def _is_plain_object(value: Any) -> bool:
    return hasattr(value, "__dict__") and not callable(value)


def _holds_tensor(value: Any, depth: int) -> bool:
    if isinstance(value, Tensor) or depth == 0:
        return isinstance(value, Tensor)
    if isinstance(value, (list, tuple)):
        return any(_holds_tensor(item, depth - 1) for item in value)
    if isinstance(value, MutableMapping):
        return any(_holds_tensor(item, depth - 1) for item in value.values())
    return _is_plain_object(value) and any(_holds_tensor(item, depth - 1) for item in vars(value).values())
