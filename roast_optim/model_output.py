"""The loss and the predictions in what a model returns, whatever kind of output that is."""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# What else the outputs of transformers hold, in parts of its names.
_NOT_PREDICTIONS = (
    "loss", "hidden", "attention", "past", "cache", "mems", "pool", "embed", "state", "feature", "router", "indices",
)  # fmt: skip
_CURE = "pass logits_fn=, a function of the output that returns what is to be compared, or consistency_weight=0"


class AdversarialOutput(NamedTuple):
    """What :class:`.AdversarialEmbedding` returns in training mode where the model returns a plain tensor.

    Attributes:
        loss: the whole objective, a scalar.
        logits: the model's output in the clean pass.
    """

    loss: Tensor
    logits: Tensor


@dataclass(frozen=True)
class TaskLoss:
    """A ``loss_fn`` for :class:`.AdversarialEmbedding` that says more of itself than that it averages.

    >>> TaskLoss(lambda output, labels: (output - labels).square().sum() / 8, divisor=8).divisor
    8

    Attributes:
        function: of the model's output and the labels; returns a scalar.
        divisor: what the function divides the sum over its items by; the consistency loss is then divided likewise.
            None: it averages.
        labels_are_shifted: whether the prediction at a token is compared with the label after the one at its place, if
            the model is a decoder-only language model.
    """

    function: Callable[[Any, Any], Tensor]
    divisor: Tensor | float | None = None
    labels_are_shifted: bool = False

    def __call__(self, output: Any, labels: Any) -> Tensor:
        """The loss."""
        return self.function(output, labels)


def loss_of(output: Any, labels: Any, loss_fn: Callable[[Any, Any], Tensor] | None) -> Tensor:
    """What the model returned as its loss, or ``loss_fn`` makes of its output.

    In a tuple it comes first, or is the only scalar.

    Raises:
        ValueError: there is no scalar loss.
    """
    if loss_fn is not None:
        loss: Any = loss_fn(output, labels)
    elif isinstance(output, Tensor):
        raise ValueError("loss_fn=None: the model returns a plain tensor; pass loss_fn=, a function of it and labels")
    else:
        named = _named(output)
        loss = output[_loss_index(output)] if named is None and output else (named or {}).get("loss")
    if not _is_scalar(loss):
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        missing = "labels=None: " if labels is None else ""
        raise ValueError(
            f"{missing}the loss in training mode is {found}, not a scalar tensor; pass labels= that the model computes "
            "its loss from, or loss_fn= to compute it"
        )
    assert isinstance(loss, Tensor)
    return loss


def predictions_of(
    output: Any, model: nn.Module, logits_fn: Callable[[Any], Any] | None, *, has_loss: bool, width: int
) -> dict[str, Tensor]:
    """All that the output predicts, by name; nothing if there is nothing that looks like a prediction.

    - What ``logits_fn`` returns: a tensor, or several in a tuple, list or dict.
    - Else the output itself, if it is a tensor.
    - Else what its names call logits or scores, those of routers apart. If nothing is called so, all floating-point
      tensors but losses, hidden states, attentions, caches and the like, by their names.
    - Else, in a tuple without names, what the class of outputs that the model's ``forward`` is annotated with calls so.
      Without it, the first tensor beside the loss, and all others but hidden states: those of the embedding's width.

    Args:
        output: what the model returned.
        model: which returned it, without wrappers.
        logits_fn: see above.
        has_loss: whether a tuple holds the loss.
        width: of the embedding.

    Raises:
        ValueError: ``logits_fn`` returned no tensor.
    """
    if logits_fn is not None:
        found = _tensors({"logits_fn": logits_fn(output)})
        if not found:
            raise ValueError(
                "logits_fn= returned no floating-point tensor of at least one dimension; return what is to be compared"
            )
        return found
    if isinstance(output, Tensor):
        return _tensors({"logits": output})
    named = _named(output)
    if named is None:
        return _tensors_of_tuple(output, model, has_loss, width)
    called_so = {name: value for name, value in named.items() if _is_called_prediction(name)}
    others = {
        name: value for name, value in named.items() if not any(part in name.lower() for part in _NOT_PREDICTIONS)
    }
    return _tensors(called_so) or _tensors(others)


def comparable(
    clean: Mapping[str, Tensor], adversarial: Mapping[str, Tensor], output: Any, *, needed: bool
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The name of each prediction with that of both passes; without their graphs unless they are needed.

    Args:
        clean: those of the clean pass, by name.
        adversarial: those of the adversarial pass.
        output: the output that they are from.
        needed: whether there must be some, all in pairs.

    Raises:
        ValueError: ``needed``, and there are none, or the passes differ in their names or shapes.
    """
    if needed and not clean:
        raise ValueError(
            f"the model's output, {type(output).__name__}, has no logits for the consistency loss, neither .logits "
            f"nor under another name; {_CURE}"
        )
    for name, first in clean.items():
        second = adversarial.get(name)
        if second is not None and second.shape == first.shape:
            yield (name, first, second) if needed else (name, first.detach(), second.detach())
        elif needed:
            found = "is missing" if second is None else f"has shape {tuple(second.shape)}"
            raise ValueError(
                f"the prediction {name!r} has shape {tuple(first.shape)} in the clean pass and {found} in the "
                "adversarial one; " + _CURE
            )


def with_loss(output: Any, loss: Tensor, *, loss_is_new: bool) -> Any:
    """The output with ``loss`` as its loss: in the place of the one that it has, unless ``loss_is_new``."""
    if isinstance(output, Tensor):
        return AdversarialOutput(loss, output)
    if isinstance(output, tuple):
        if "loss" in getattr(output, "_fields", ()):
            return output._replace(loss=loss)  # type: ignore[attr-defined]
        if loss_is_new:
            return (loss, *output)
        index = _loss_index(output)
        return (*output[:index], loss, *output[index + 1 :])
    if isinstance(output, list):
        return list(with_loss(tuple(output), loss, loss_is_new=loss_is_new))
    if isinstance(output, Mapping):
        try:
            output["loss"] = loss  # type: ignore[index]
        except TypeError:  # one that cannot be changed
            return {**output, "loss": loss}
        return output
    try:
        output.loss = loss
    except AttributeError:  # a frozen dataclass
        output = copy.copy(output)
        object.__setattr__(output, "loss", loss)
    return output


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()


def _loss_index(output: Any) -> int:
    """The place of the loss in a tuple: the first, or that of the only scalar."""
    scalars = [index for index, value in enumerate(output) if _is_scalar(value) and value.ndim == 0]
    return scalars[0] if len(scalars) == 1 and not _is_scalar(output[0]) else 0


def _named(output: Any) -> Mapping[str, Any] | None:
    """The parts of an output by their names; None of a tuple that has none."""
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if isinstance(output, (tuple, list)):
        return dict(zip(output._fields, output, strict=True)) if hasattr(output, "_fields") else None
    if is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    known = {name: getattr(output, name) for name in ("loss", "logits") if hasattr(output, name)}
    return {**known, **getattr(output, "__dict__", {})}


def _is_called_prediction(name: str) -> bool:
    lowered = name.lower()
    return ("logit" in lowered or lowered.endswith(("score", "scores"))) and "router" not in lowered


def _tensors(named: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that can be compared, also those in tuples and dicts: ``name``, or ``name.0``, ``name.1``, ..."""
    found: dict[str, Tensor] = {}
    for name, value in named.items():
        leaves = [value] if isinstance(value, Tensor) else tree_leaves(value)
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 0:
                found[name if len(leaves) == 1 else f"{name}.{index}"] = leaf
    return found


def _tensors_of_tuple(output: Any, model: nn.Module, has_loss: bool, width: int) -> dict[str, Tensor]:
    loss_index = _loss_index(output) if has_loss else -1
    values = [
        value
        for index, value in enumerate(output)
        if index != loss_index and not (isinstance(value, Tensor) and value.ndim == 0)  # the losses of several heads
    ]
    names = _annotated_predictions(model)
    if names:
        # A tuple leaves out what is None, which in training the predictions are not: they follow the losses.
        return _tensors(dict(zip(names, values, strict=False)))
    found: dict[str, Tensor] = {}
    for index, value in enumerate(values):
        for name, tensor in _tensors({f"output[{index}]": value}).items() if isinstance(value, Tensor) else ():
            if not found or tensor.shape[-1] != width:
                found[name] = tensor
    return found


def _annotated_predictions(model: nn.Module) -> list[str]:
    """The names of the predictions that follow the loss in the class that ``forward`` says it returns."""
    try:
        annotation: Any = typing.get_type_hints(inspect.unwrap(model.forward)).get("return")
    except Exception:  # annotations may name what cannot be imported
        return []
    for candidate in (annotation, *typing.get_args(annotation)):
        if is_dataclass(candidate):
            names = [field.name for field in fields(candidate) if "loss" not in field.name]
            count = next((index for index, name in enumerate(names) if not _is_called_prediction(name)), len(names))
            return names[:count]
    return []
