"""Steps at random, whose tensors follow from the description in kernels/step.py: made, copied, taken and compared."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from roast_optim.kernels.step import SCORE_DTYPES, TENSORS, DtypeOf, Position, Selection, StepOptions, StepRow
from tests.oracles import philox
from tests.support.differences import first_difference

OPTIONS: dict[str, Any] = {
    "lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "maximize": False, "capturable": False,
    "accumulate": True, "selection": None,
}  # fmt: skip
OPTIONAL = tuple(name for name, described in TENSORS.items() if described.needs is not None)
# Those of which backends agree up to rounding only.
VALUES = tuple(
    name
    for name, described in TENSORS.items()
    if described.written and described.dtype in (DtypeOf.PARAMETER, DtypeOf.MOMENT)
)
OF_SELECTION = tuple(name for name in OPTIONAL if TENSORS[name].needs == "selective")

# What random steps draw the options from; lr and betas that suit them are for each test to add.
OPTION_STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "eps": st.sampled_from([1e-8, 1e-3]),
    "weight_decay": st.sampled_from([0.0, 0.1]),
    "maximize": st.booleans(),
    "accumulate": st.booleans(),
    "pretrained_decay": st.sampled_from([0.0, 0.0, 0.5]),
    "pretrained_decay_by": st.sampled_from(["uniform", "rank"]),
    "stochastic_rounding": st.booleans(),
    "rounding_seed": st.sampled_from([0, 2**40 + 7, 2**64 - 1]),
    "gradient_factor": st.sampled_from([1.0, 1.0, 1.0, 0.3, torch.tensor(-0.7), torch.tensor([0.4]).double()[0]]),
}
score_dtypes = st.sampled_from(SCORE_DTYPES)
selection_targets = st.sampled_from(["gradient", "gradient", "update"])
# Tensors that depend on an option: those of selection, and any of the others.
optional_tensors = st.sets(st.sampled_from([name for name in OPTIONAL if name not in OF_SELECTION])).map(
    lambda others: (*OF_SELECTION, *others)
)


def selection(
    draw_number: int | None = None, *, alpha: float = 0.5, beta: float = 5.0, seed: int = 2**40 + 7, **changes: Any
) -> Selection:
    """A selection that keeps about half of the elements with evenly spread rank codes."""
    thresholds = torch.from_numpy(philox.thresholds(alpha, beta).astype(np.int64))
    rescaling = torch.from_numpy(philox.rescaling_factors(alpha, beta).copy())
    return replace(Selection(seed, thresholds, rescaling, draw_number), **changes)


class Step:
    """What a backend takes; no dataclass, of which hypothesis would print every element."""

    def __init__(self, rows: list[StepRow], options: StepOptions) -> None:
        self.rows, self.options = rows, options

    def __repr__(self) -> str:
        """What is needed to make the case again, but for the random numbers."""
        tensors = [(tuple(row.param.shape), row.param.dtype, row.exp_avg.dtype) for row in self.rows]
        selected = self.options.selection
        options = {name: getattr(self.options, name) for name in OPTIONS if name != "selection"}
        drawn = selected and (selected.seed, selected.draw_number)
        return f"{tensors} {self.names} {self.rows[0].step} {[row.position for row in self.rows]} {options} {drawn}"

    @property
    def names(self) -> list[str]:
        """The tensors that the rows have."""
        return [name for name, _ in self.rows[0].tensors()]

    def run(self, backend: Any) -> Step:
        """Take the step with a backend's module, in place."""
        backend.roast_adamw_(self.rows, self.options)
        return self

    def column(self, name: str) -> list[Tensor]:
        """One tensor of every row."""
        return [getattr(row, name) for row in self.rows]

    def tensors(self) -> list[Tensor]:
        """All tensors."""
        return [tensor for row in self.rows for _, tensor in row.tensors()]

    def change(self, **tensors: Tensor) -> None:
        """Give the first row other tensors."""
        for name, tensor in tensors.items():
            setattr(self.rows[0], name, tensor)

    def set(self, **options: Any) -> None:
        """Change options."""
        self.options = replace(self.options, **options)

    def copy(self, *, values: torch.dtype | None = None) -> Step:
        """A deep copy; with ``values`` the parameters and moments are of that dtype."""
        rows = []
        for row in self.rows:
            tensors = {name: tensor.detach().clone() for name, tensor in row.tensors()}
            converted = {name: tensors[name].to(values or tensors[name].dtype) for name in VALUES if name in tensors}
            rows.append(StepRow(position=row.position, **{**tensors, **converted}))
        return Step(rows, self.options)


def random_step(
    shapes: Sequence[tuple[int, ...]],
    *,
    dtype: torch.dtype = torch.float32,
    moment_dtype: torch.dtype = torch.float32,
    score_dtype: torch.dtype = torch.float32,
    optional: Collection[str] = OF_SELECTION,
    positions: Sequence[Position] | None = None,
    offset: int = 0,
    steps: int | Sequence[int] = 3,
    smallest_square: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Step:
    """A step with random tensors of these shapes.

    Args:
        optional: which of the tensors that depend on an option the rows have, beside those that the options need.
        positions: None: of whole parameters.
        offset: every tensor begins so many elements behind an aligned address.
        steps: counts before the step, of all rows or of each.
        smallest_square: which second moments and importances exceed; with 0 an update may be large.
        options: of :class:`StepOptions`; the rest are :data:`OPTIONS`.
    """
    generator = torch.Generator().manual_seed(seed)

    def values(name: str, shape: tuple[int, ...]) -> Tensor:
        described, numel = TENSORS[name], torch.Size(shape).numel()
        if described.dtype is DtypeOf.UINT8:
            drawn = torch.randint(256, (numel,), generator=generator)
        elif described.is_square:
            drawn = torch.rand(numel, generator=generator) + smallest_square
        else:
            drawn = torch.randn(numel, generator=generator)
        drawn = drawn.to(described.dtype.resolved(dtype, moment_dtype, score_dtype))
        return torch.cat([drawn.new_zeros(offset), drawn])[offset:].view(shape)

    chosen = StepOptions(**{**OPTIONS, **options})
    asked_for = {name for name in OPTIONAL if getattr(chosen, TENSORS[name].needs or "", False)} | set(optional)
    names = [name for name in TENSORS if TENSORS[name].per_element and (name not in OPTIONAL or name in asked_for)]
    counts = [steps] * len(shapes) if isinstance(steps, int) else steps
    positions = positions or [Position.whole(i, torch.Size(shape).numel()) for i, shape in enumerate(shapes)]
    rows = [
        StepRow(position=position, step=torch.tensor(float(count)), **{name: values(name, shape) for name in names})
        for position, count, shape in zip(positions, counts, shapes, strict=True)
    ]
    return Step(rows, chosen)


def assert_same_tensors(actual: Step, expected: Step, names: Iterable[str] | None = None) -> None:
    """The tensors of those names (all) are equal; says which of which row differs, and where first."""
    for i, (row, wanted) in enumerate(zip(actual.rows, expected.rows, strict=True)):
        for name in [name for name, _ in wanted.tensors()] if names is None else names:
            difference = first_difference(getattr(row, name), getattr(wanted, name))
            assert difference is None, f"{name} of parameter {i}: {difference}"
