"""The parameters of an optimizer: where each lies in the whole model, by which its elements draw, and its state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .backends import backend_for
from .kernels.backend import Backend
from .kernels.step import Position, StepRow
from .options import RoastOptions
from .processes import parameters_of_earlier_stages
from .sharding import position_of
from .state import State, make_state, step_row
from .step_plans import PlannedStep, StepPlans

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Groups = Sequence[dict[str, Any]]


class Positions(dict[Tensor, Position]):
    """The positions of the parameters that have a shape already; a lazy one is placed before its first step.

    Args:
        param_groups: of the optimizer.
        ids: one per parameter of all groups, in their order.

    Raises:
        ValueError: a parameter is sharded in a way in which its elements are not evenly spaced in the whole.
    """

    def __init__(self, param_groups: Groups, ids: Iterable[int]) -> None:
        every = [param for group in param_groups for param in group["params"]]
        first_ids: dict[Tensor, int] = {}
        for parameter_id, param in zip(ids, every, strict=True):
            if not is_lazy(param):
                first_ids.setdefault(param, parameter_id)
        super().__init__({param: position_of(param, parameter_id) for param, parameter_id in first_ids.items()})
        self._sizes = {param: param.numel() for param in first_ids}

    def knows(self, param: Tensor) -> bool:
        """Whether a parameter was placed with its present number of elements.

        Accelerate puts the shards in the place of the parameters, others give a parameter another size, and a lazy one
        has a size from its first forward pass on.
        """
        return self._sizes.get(param) == param.numel()


class Parameters:
    """What an optimizer knows of its parameters beside groups and state, which torch may replace at any time.

    Args:
        options: of the whole optimizer.
        backend: which was asked for, already checked.
        process_group: of the optimizer.
        warn: told what the user should know.
        shared_ids: the ids of so many parameters, where several optimizers number theirs one after the other. None: an
            id is the index in the state_dict, counted on from those of earlier pipeline stages.

    Attributes:
        positions: of all parameters, from the first :meth:`place` on.
        first_id: the id of the first parameter, without ``shared_ids``.
        plans: of steps, which depend on the positions.
    """

    positions: Positions

    def __init__(
        self,
        options: RoastOptions,
        backend: str,
        process_group: ProcessGroup | None,
        warn: Callable[[str], None],
        shared_ids: Callable[[int], Sequence[int]] | None = None,
        first_id: int = 0,
    ) -> None:
        self._options, self._backend, self._process_group = options, backend, process_group
        self._warn, self._shared_ids = warn, shared_ids
        self.first_id = first_id
        self.plans = StepPlans()

    def place(self, param_groups: Groups) -> None:
        """Number the parameters, and find out anew where each of them lies in the whole."""
        self.plans.clear()
        count = sum(len(group["params"]) for group in param_groups)
        own_ids = range(self.first_id, self.first_id + count)
        self.positions = Positions(param_groups, own_ids if self._shared_ids is None else self._shared_ids(count))

    def go_back_to(self, positions: Positions) -> None:
        """Undo what :meth:`place` did since the positions were these."""
        self.plans.clear()
        self.positions = positions

    def number_after_earlier_stages(self, param_groups: Groups) -> None:
        """Count the ids on from those of the pipeline stages before this one, which these have to tell."""
        if self._process_group is not None:
            self.first_id = parameters_of_earlier_stages(param_groups, self._process_group)
            self.place(param_groups)

    def position_of(self, param: Tensor, param_groups: Groups) -> Position:
        """Where a parameter lies in the whole; it may be another one than before, or have another size."""
        if not self.positions.knows(param):
            self.place(param_groups)
        return self.positions[param]

    def state_of(self, param: Tensor, group: dict[str, Any], state: State, position: Position) -> State:
        """The ``state`` of a parameter, in which what was missing or has another shape is made."""
        if anew := make_state(state, group, param, self._options, position.parameter_id):
            self._warn(
                f"RoastAdamW: the shape of a parameter has changed, and {' and '.join(anew)} of its state did not "
                "with it: made anew. Until the next refresh its elements count as most important"
            )
        return state

    def backend_of(self, device: torch.device) -> Backend:
        """The backend that runs parameters on a device.

        Raises:
            ValueError: the backend that was asked for cannot run there.
        """
        return backend_for(self._backend, device, self._warn)

    def planned_steps(self, param_groups: Groups, states: MutableMapping[Tensor, State]) -> list[list[PlannedStep]]:
        """What a step of each group has to do; makes missing state, and notices what has changed.

        Raises:
            RuntimeError: a sparse or complex gradient, or a state that does not fit its parameter.
        """

        def row_of(group: dict[str, Any], param: Tensor) -> StepRow:
            position = self.position_of(param, param_groups)
            return step_row(self.state_of(param, group, states[param], position), group, param, position)

        return [
            self.plans.of_group(number, group, states, row_of, self.backend_of)
            for number, group in enumerate(param_groups)
        ]
