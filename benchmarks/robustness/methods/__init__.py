"""The methods by name. A variant of a method is an entry with other options, not another class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..data import Task
from ..errors import UserError
from ..training import Method
from .plain import Plain
from .roast import AdversarialOnly, Roast, SelectiveOnly
from .weight_consolidation import WeightConsolidation


@dataclass(frozen=True)
class Entry:
    """A method under a name: its class and the options that make it what the name says."""

    method: type[Method]
    options: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Entry] = {
    "plain": Entry(Plain),
    "advembed": Entry(AdversarialOnly),
    "selective": Entry(SelectiveOnly),
    "wconsol": Entry(WeightConsolidation),
    "roast": Entry(Roast),
}


def create_method(name: str, task: Task, options: Mapping[str, Any]) -> Method:
    """A new object of the method `name`.

    Raises:
        UserError: no such method, or it has no such option, or an option is out of range.
    """
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown; known: {', '.join(METHODS)}")
    entry = METHODS[name]
    known = option_names(name)
    for option in options:
        if option not in known:
            raise UserError(f"method {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return entry.method.for_task(task, **{**entry.options, **options})


def option_names(name: str) -> list[str]:
    """The options of a method."""
    return [each.name for each in fields(METHODS[name].method) if each.init]  # type: ignore[arg-type]
