"""Which parameters are trained selectively: the transformer blocks, found by structure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.nn.parameter import is_lazy

# A block of another stack (a decoder's beside an encoder's) is about as large as a block of the largest one; members
# of other lists, such as the heads of several tasks, are far smaller.
_SMALLEST_BLOCK = 0.25


def selective_param_groups(
    model: nn.Module, weight_decay: float, always_update: str | Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for :class:`.RoastAdamW`: transformer blocks selective, all else always updated.

    As in the authors' code for arXiv 2312.04032, embeddings, pooler, final normalisation and head are always updated.
    Biases and the weights of normalisation layers get no weight decay, in the blocks as elsewhere: parameters with
    fewer than two dimensions, those called ``...bias...``, and those of modules whose class is called ``...Norm...``.

    Args:
        model: any module that has transformer blocks; see :func:`transformer_blocks` for what counts as one.
        weight_decay: of everything that is neither bias nor normalisation weight.
        always_update: regular expressions; a parameter of a block whose name (as in ``model.named_parameters()``) one
            of them matches anywhere (``re.search``) is always updated.

    Returns:
        Up to four groups, those that would be empty left out: dicts of ``params`` (a list of parameters in the
        model's order), ``weight_decay`` and ``selective``. A parameter that is shared appears once, and is selective
        only if nothing outside the blocks uses it. Frozen parameters (``requires_grad`` False) are left out: freeze
        before calling, and build the groups again after unfreezing.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``weight_decay`` is negative or not finite; the model has no transformer blocks, or none that is
            trainable; a pattern of ``always_update`` matches no parameter.

    Example:
        >>> block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = nn.ModuleDict({
        ...     "embedding": nn.Embedding(50, 16), "blocks": nn.TransformerEncoder(block, 2), "head": nn.Linear(16, 2)
        ... })
        >>> for group in selective_param_groups(model, weight_decay=0.01):
        ...     print(group["selective"], group["weight_decay"], len(group["params"]))
        True 0.01 8
        True 0.0 16
        False 0.01 2
        False 0.0 1
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is of type {type(model).__name__}, not a torch.nn.Module: pass the model itself, not its parameters"
        )
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError(
            f"model={type(model).__name__} has lazy parameters without a shape, so that its blocks cannot be compared: "
            "run a batch through it first"
        )
    if not 0.0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay={weight_decay!r} is not a number from 0 up")
    patterns = _compile(always_update)
    blocks = [block for stack in transformer_blocks(model) for block in stack]
    if not blocks:
        raise ValueError(
            f"model={type(model).__name__} has no transformer blocks: no nn.ModuleList or nn.Sequential of like "
            'modules with parameters; write the groups yourself, as dicts with "params" and "selective", or '
            "RoastAdamW(model, selective=False)"
        )
    inside = {module for block in blocks for module in block.modules()}
    outside_parameters = {
        parameter
        for module in model.modules()
        if module not in inside
        for parameter in module.parameters(recurse=False)
    }
    unpenalised = _without_weight_decay(model)

    groups: dict[tuple[bool, bool], list[Parameter]] = {}
    for name, parameter in model.named_parameters():
        matches = [pattern for pattern in patterns if pattern.search(name)]
        for pattern in matches:
            patterns[pattern] = True
        if parameter.requires_grad:
            selective = parameter not in outside_parameters and not matches
            groups.setdefault((selective, parameter not in unpenalised), []).append(parameter)

    unmatched = [pattern.pattern for pattern, found in patterns.items() if not found]
    if unmatched:
        raise ValueError(
            f"always_update={unmatched!r} matches no parameter of the model; the names are those of "
            "model.named_parameters()"
        )
    if not any(selective for selective, _ in groups):
        raise ValueError(
            f"model={type(model).__name__} has no trainable parameter in its transformer blocks that would be "
            f"selective; unfreeze some, or narrow always_update={always_update!r}"
        )
    return [
        {"params": groups[key], "weight_decay": weight_decay if key[1] else 0.0, "selective": key[0]}
        for key in ((True, True), (True, False), (False, True), (False, False))
        if key in groups
    ]


def always_updated_param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for :class:`.RoastAdamW` without selection, with which it is AdamW.

    Args:
        model: any module, with transformer blocks or without.
        weight_decay: of everything that is neither bias nor normalisation weight, as in :func:`selective_param_groups`.

    Returns:
        Up to two groups: dicts of ``params`` (those that are trainable), ``weight_decay`` and ``selective`` (False).
    """
    unpenalised = _without_weight_decay(model)
    groups = (
        {
            "params": [
                parameter
                for parameter in model.parameters()
                if parameter.requires_grad and (parameter not in unpenalised) == decays
            ],
            "weight_decay": weight_decay if decays else 0.0,
            "selective": False,
        }
        for decays in (True, False)
    )
    return [group for group in groups if group["params"]]


def transformer_blocks(model: nn.Module) -> list[list[nn.Module]]:
    """The stacks of transformer blocks of a model, in the model's order: of an encoder-decoder, two.

    A stack is an ``nn.ModuleList``, or an ``nn.Sequential`` of at least two members, whose members have parameters
    and submodules of their own and are of few classes: one, or each at least twice (a hybrid of two kinds of blocks).
    Of nested ones the outermost counts (ALBERT's groups of shared layers), unless its members are whole models with
    embeddings of their own. The largest stack always counts, another if it shares a class with it or if its members are
    at least a quarter as large, so that heads kept in a list do not. An empty list if there are no stacks.
    """
    stacks = _candidate_stacks(model)
    if not stacks:
        return []
    largest = max(stacks, key=lambda stack: sum(map(_size, stack)))
    classes = {type(block) for block in largest}
    threshold = _SMALLEST_BLOCK * _mean_size(largest)
    return [
        stack
        for stack in stacks
        if _mean_size(stack) >= threshold or not classes.isdisjoint(type(block) for block in stack)
    ]


def _candidate_stacks(module: nn.Module) -> list[list[nn.Module]]:
    """The outermost stacks of like modules, whatever their size."""
    if _is_stack(module):
        return [list(module.children())]
    # Not model.modules(): what lies within a stack is not looked at.
    return [stack for child in module.children() for stack in _candidate_stacks(child)]


def _is_stack(module: nn.Module) -> bool:
    members = list(module.children())
    smallest = 1 if isinstance(module, nn.ModuleList) else 2
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(members) < smallest:
        return False
    classes = Counter(type(member) for member in members)
    alike = len(classes) == 1 or min(classes.values()) >= 2
    return alike and all(any(member.children()) and _size(member) and not _is_model(member) for member in members)


def _is_model(module: nn.Module) -> bool:
    """Does it hold both embeddings and blocks? (A block may hold a table of relative positions, as T5's first does.)"""
    return any(isinstance(part, nn.Embedding) for part in module.modules()) and bool(_candidate_stacks(module))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _mean_size(stack: list[nn.Module]) -> float:
    return sum(map(_size, stack)) / len(stack)


def _without_weight_decay(model: nn.Module) -> set[Parameter]:
    """Biases and the weights of normalisation layers."""
    return {
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim < 2 or "bias" in name or "norm" in type(module).__name__.lower()
    }


def _compile(patterns: str | Iterable[str] | None) -> dict[re.Pattern[str], bool]:
    """The patterns, each with whether it has matched yet."""
    if patterns is None:
        return {}
    compiled: dict[re.Pattern[str], bool] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            compiled[re.compile(pattern)] = False
        except (re.error, TypeError) as error:
            raise ValueError(f"always_update={pattern!r} is not a regular expression: {error}") from error
    return compiled
