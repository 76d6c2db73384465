"""What a backend keeps between steps of its tensors, and how it notices that one of them has changed.

A plan holds addresses. Memory is corrupted silently if one of them is stale, so a plan is asked before every step
whether it still fits, and is made anew where it does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import is_

from torch import Tensor

from .step import TENSORS, StepOptions, StepRow
from .tensor_facts import facts


class StepPlan(ABC):
    """The rows of a group that lie on one device, prepared for many steps; made by a backend's ``plan``.

    Attributes:
        names: the tensors that every row has, in the order of the fields; without gradients, which are new at every
            step and would be kept alive.
        positions: of the rows.
        fallbacks: why some rows are left to the reference where that is slow, each with what to do about it; steps add
            what they find out.
        held_for_graphs: what CUDA graphs that hold steps of this plan read at their replays. Nothing tells when the
            last of them is gone, so whoever replaces the plan keeps it.

    Raises:
        ValueError: the rows do not have the same tensors, or the memory of a tensor was freed.
    """

    def __init__(self, rows: Sequence[StepRow]) -> None:
        self.fallbacks: list[str] = []
        self.held_for_graphs: list[Tensor] = []
        self.positions = [row.position for row in rows]
        self.names = _common_names(rows)
        tensors = [[getattr(row, name) for name in self.names] for row in rows]
        self.params: Sequence[Tensor] = [row[0] for row in tensors]
        self._state: Sequence[Tensor] = [tensor for row in tensors for tensor in row[1:]]
        self.check_memory()
        self._planned = self.facts_of(self.params), self.facts_of(self._state)

    def facts_of(self, tensors: Sequence[Tensor]) -> object:
        """What the plan relies on of tensors and would not notice in the step.

        Facts notice every change: ``.data``, ``set_``, ``resize_``, a view or dtype of the same memory, storage that
        was freed or moved.
        """
        return facts(tensors)

    def fits(self, params: Sequence[Tensor], state: Sequence[Tensor]) -> bool:
        """Whether the tensors are those that were planned, in memory and in layout; from then on they are the plan's.

        Args:
            params: the parameters, in the order of the rows.
            state: the other tensors, row by row and in the order of ``names``.
        """
        if (
            len(params) != len(self.params)
            or not all(map(is_, params, self.params))
            or (self.facts_of(params), self.facts_of(state)) != self._planned
        ):
            return False
        self._state = state  # perhaps other objects with the same memory
        return True

    def rows(self, grads: Sequence[Tensor | None] | None = None) -> list[StepRow]:
        """The rows as they are now, with these gradients or with none."""
        names, width = self.names[1:], len(self.names) - 1
        return [
            StepRow(
                param=param,
                grad=None if grads is None else grads[i],
                position=self.positions[i],
                **dict(zip(names, self._state[i * width : (i + 1) * width], strict=True)),
            )
            for i, param in enumerate(self.params)
        ]

    def check_memory(self) -> None:
        """Raise ValueError if the memory of a tensor was freed."""
        for i, row in enumerate(self.rows()):
            for name, tensor in row.tensors():
                if tensor.numel() and tensor.device.type in ("cpu", "cuda") and tensor.data_ptr() == 0:
                    raise ValueError(
                        f"the memory of {name} of row {i}, of shape {tuple(tensor.shape)}, was freed (its storage has "
                        f"{tensor.untyped_storage().nbytes()} bytes): give it back before the step"
                    )

    def importances(self) -> list[Tensor]:
        """Those of the rows.

        Raises:
            ValueError: they have none.
        """
        found = [row.importance for row in self.rows() if row.importance is not None]
        if len(found) != len(self.params):
            raise ValueError("these rows have no importance to which anything could be added")
        return found

    def note_fallback(self, reason: str) -> None:
        """Add a reason to ``fallbacks``, once."""
        if reason not in self.fallbacks:
            self.fallbacks.append(reason)

    @abstractmethod
    def accumulate(self, grads: Sequence[Tensor], gradient_factor: float | Tensor = 1.0) -> None:
        """Add the squared gradients to the importance of the rows, and nothing else.

        With a factor copies of all gradients are made, see :func:`.reference.multiplied`.
        """

    @abstractmethod
    def step(self, grads: Sequence[Tensor], options: StepOptions) -> None:
        """Take one step, in place; see :func:`.reference.roast_adamw_`.

        Args:
            grads: of the rows, in their order. They are looked at every time.
            options: the scalars.
        """


def not_contiguous(name: str) -> str:
    """The reason of a fallback: a tensor, by its name in the row, is not contiguous."""
    if name == "grad":
        return "a gradient is not contiguous: call contiguous() on it before the step"
    return (
        f"{name} is not contiguous (a model in channels_last, say, or a transposed parameter): make the parameters "
        "contiguous before the optimizer is constructed"
    )


def gradients(rows: Sequence[StepRow]) -> list[Tensor]:
    """The gradients of the rows.

    Raises:
        ValueError: a row has none.
    """
    grads = [row.grad for row in rows if row.grad is not None]
    if len(grads) != len(rows):
        raise ValueError(f"{len(rows) - len(grads)} of {len(rows)} rows have no gradient: leave them out of the step")
    return grads


def check_options(names: Sequence[str], options: StepOptions) -> None:
    """Raise ValueError if the options ask for a tensor that the rows lack, or for a seed that is none."""
    for what, wanted, name in (
        ("accumulate=True", options.accumulate, "importance"),
        ("a selection", options.selection is not None, "rank_code"),
        ("pretrained_decay", options.pretrained_decay != 0, "pretrained"),
    ):
        if wanted and names and name not in names:
            raise ValueError(f"{what} needs rows with {name}; these have {names}")
    if not 0 <= options.rounding_seed < 2**64:
        raise ValueError(f"rounding_seed={options.rounding_seed} must lie in [0, 2**64)")


def _common_names(rows: Sequence[StepRow]) -> tuple[str, ...]:
    """The tensors that all rows have, without the gradient."""
    names: tuple[str, ...] = ()
    for i, row in enumerate(rows):
        own = tuple(name for name, _ in row.tensors() if name != "grad")
        if i > 0 and own != names:
            differing = next(name for name in TENSORS if (name in own) != (name in names))
            with_it, without = ("row 0", f"row {i}") if differing in names else (f"row {i}", "row 0")
            raise ValueError(
                f"the rows of a step must have the same tensors; {with_it} has {differing}, {without} has none"
            )
        names = own
    return names
