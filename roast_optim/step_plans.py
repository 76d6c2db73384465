"""The plans of an optimizer's steps: which tensors take part, and whether they are still those of the last step."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from itertools import chain
from operator import is_, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .kernels.backend import Backend
from .kernels.plan import StepPlan
from .kernels.step import StepRow, state_names
from .kernels.tensor_facts import TensorsWithFacts
from .sharding import local, sharding_of
from .state import State, local_gradients, refuse_sparse_and_complex


class PlannedStep(NamedTuple):
    """The parameters of a group on one device that have a gradient, ready for a step."""

    device: torch.device
    plan: StepPlan
    grads: list[Tensor]


class StepPlans:
    """The plans by number of the parameter group; they hold tensors of the last step until the next, or `clear`."""

    def __init__(self) -> None:
        self._plans: dict[int, _GroupPlan] = {}
        # A CUDA graph may be replayed long after its step was planned anew.
        self._held_for_graphs: list[Tensor] = []

    def clear(self) -> None:
        """Forget all plans and the tensors that they hold."""
        for number in [*self._plans]:
            self._forget(number)

    def of_group(
        self,
        number: int,
        group: dict[str, Any],
        state: MutableMapping[Tensor, State],
        row_of: Callable[[dict[str, Any], Tensor], StepRow],
        backend_of: Callable[[torch.device], Backend],
    ) -> list[PlannedStep]:
        """What a step of that group has to do, by device; nothing where no parameter has a gradient.

        Args:
            number: of the group.
            group, state: the group, and the state of all parameters.
            row_of: makes the row of a parameter, and its state where that is missing.
            backend_of: the backend of a device.

        Raises:
            RuntimeError: a sparse or complex gradient, or a parameter of another shape than its state.
        """
        grads = [param.grad for param in group["params"]]
        known = self._plans.get(number)
        if known is None or not known.fits(group, grads, state, backend_of):
            self._forget(number)
            stepping = [param for param, grad in zip(group["params"], grads, strict=True) if grad is not None]
            refuse_sparse_and_complex(stepping, [grad for grad in grads if grad is not None])
            rows = [row_of(group, param) for param in stepping]
            known = self._plans[number] = _GroupPlan(group, stepping, grads, rows, backend_of)
        return known.steps([grad for grad in grads if grad is not None])

    def _forget(self, number: int) -> None:
        if number in self._plans:
            for part in self._plans.pop(number).parts:
                self._held_for_graphs += part.plan.held_for_graphs


class _Part(NamedTuple):
    device: torch.device
    backend: Backend
    plan: StepPlan
    indices: list[int]  # of the parameters that have a gradient


class _GroupPlan:
    """The plans of one group, and the parameters for which they were made."""

    def __init__(
        self,
        group: dict[str, Any],
        stepping: list[Tensor],
        grads: list[Tensor | None],
        rows: list[StepRow],
        backend_of: Callable[[torch.device], Backend],
    ) -> None:
        self._params, self._stepping, self._names = list(group["params"]), stepping, state_names(group)
        self._lacks_gradient = [grad is None for grad in grads]
        by_device: dict[torch.device, list[int]] = {}
        for i, param in enumerate(stepping):
            by_device.setdefault(param.device, []).append(i)
        self.parts = []
        for device, indices in by_device.items():
            backend = backend_of(device)
            self.parts.append(_Part(device, backend, backend.plan([rows[i] for i in indices]), indices))
        self._state_tensors_of: Callable[[State], tuple[Tensor, ...]] = itemgetter(*self._names)
        self._ordinary_kinds: set[object] = set()  # of gradients that are neither sparse nor complex
        self._is_spread = any(sharding_of(param) is not None for param in stepping)

    def fits(
        self,
        group: dict[str, Any],
        grads: list[Tensor | None],
        state: MutableMapping[Tensor, State],
        backend_of: Callable[[torch.device], Backend],
    ) -> bool:
        """Whether nothing that the plans hold has changed. Gradients are looked at in the step itself."""
        params = group["params"]
        if (
            len(params) != len(self._params)
            or not all(map(is_, params, self._params))
            or [grad is None for grad in grads] != self._lacks_gradient
            or state_names(group) != self._names
            or not all(backend_of(part.device) is part.backend for part in self.parts)
        ):
            return False
        for part in self.parts:
            own = self._of_part(part, self._stepping)
            # Without a list of tuples in between, which would set the garbage collector off.
            states = map(self._state_tensors_of, map(state.get, own))  # type: ignore[arg-type]
            try:
                tensors = list(chain.from_iterable(states))
            except (KeyError, TypeError):  # a state, or a tensor of it, is missing
                return False
            if self._is_spread:
                own, tensors = list(map(local, own)), list(map(local, tensors))
            if not part.plan.fits(own, tensors):
                return False
        return True

    def steps(self, grads: list[Tensor]) -> list[PlannedStep]:
        """With the gradients of those parameters that have one."""
        if self._is_spread:
            refuse_sparse_and_complex(self._stepping, grads)
            grads = local_gradients(self._stepping, grads)
        elif grads:
            grads = self._ordinary(grads)
        return [PlannedStep(part.device, part.plan, self._of_part(part, grads)) for part in self.parts]

    def _ordinary(self, grads: list[Tensor]) -> list[Tensor]:
        """The gradients with their facts, if none is sparse or complex; the backends need the facts anyway."""
        try:
            known = TensorsWithFacts(grads)
        except RuntimeError:  # one without memory of its own: sparse, or of a device that has no addresses
            refuse_sparse_and_complex(self._stepping, grads)
            return grads
        kinds = set(known.facts.kinds)
        if not kinds <= self._ordinary_kinds:
            refuse_sparse_and_complex(self._stepping, grads)
            self._ordinary_kinds |= kinds
        return known

    def _of_part(self, part: _Part, entries: list[Any]) -> list[Any]:
        return entries if len(self.parts) == 1 else [entries[i] for i in part.indices]
