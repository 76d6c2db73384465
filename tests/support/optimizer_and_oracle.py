"""RoastAdamW and its oracle, fed with the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roast_optim import RoastAdamW
from roast_optim.options import OPTIONS
from tests.oracles.roast_adamw import Group, ParameterState, RoastAdamWOracle
from tests.support.devices import CPU, Places
from tests.support.differences import first_difference

Shapes = Sequence[Sequence[tuple[int, ...]]]
Gradients = list[list[npt.NDArray[np.floating] | None]]
Layout = Callable[[Tensor], Tensor]

SHAPES: Shapes = [[(7, 9), (13,), ()], [(3, 4, 5), (0,), (1, 6)]]
_GROUP_OPTIONS = tuple(field.name for field in fields(Group))
_ORACLE_OPTIONS = tuple(field.name for field in fields(RoastAdamWOracle) if field.name in OPTIONS)


class OptimizerAndOracle:
    """The optimizer and the oracle with equal parameters, one list of shapes and one dictionary of options per group.

    `layout` turns a new tensor into the one, of the same values, that is placed on `device` and becomes the parameter.
    """

    def __init__(
        self,
        shapes: Shapes = SHAPES,
        *,
        backend: str,
        dtype: torch.dtype = torch.float64,
        group_options: Sequence[dict[str, Any]] | None = None,
        layout: Layout = lambda tensor: tensor,
        device: torch.device = CPU,
        **options: Any,
    ) -> None:
        self.random = np.random.default_rng(5)
        self.dtype, self.layout, self.device = dtype, layout, device
        self.scales: list[list[npt.NDArray[np.float64]]] = []
        self.group_defaults = {key: value for key, value in options.items() if key in _GROUP_OPTIONS}
        group_options = group_options or [{} for _ in shapes]
        made = [self._make_group(s, o) for s, o in zip(shapes, group_options, strict=True)]
        self.optimizer = RoastAdamW([torch_group for torch_group, _ in made], backend=backend, **options)
        self.oracle = RoastAdamWOracle(
            [oracle_group for _, oracle_group in made],
            largest_gradient=torch.finfo(dtype).max,
            **{key: value for key, value in options.items() if key in _ORACLE_OPTIONS},
        )

    @property
    def parameters(self) -> list[list[Tensor]]:
        """Of every group."""
        return [group["params"] for group in self.optimizer.param_groups]

    def add_group(self, shapes: Sequence[tuple[int, ...]], **options: Any) -> None:
        """Add a parameter group to both."""
        torch_group, oracle_group = self._make_group(shapes, options)
        self.optimizer.add_param_group(torch_group)
        self.oracle.groups.append(oracle_group)

    def gradients(self) -> Gradients:
        """New gradients, none of them zero, whose size differs from element to element by orders of magnitude."""
        return [[self.rounded(self._gradient(scale)) for scale in of_group] for of_group in self.scales]

    def rounded(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.floating]:
        """What is left of them in the parameters' dtype; half precision, which NumPy lacks, comes as float32."""
        rounded = torch.from_numpy(np.asarray(values)).to(self.dtype)
        return np.asarray((rounded.float() if rounded.element_size() == 2 else rounded).numpy())

    def step(self, gradients: Gradients | None = None) -> None:
        """One step of both with the same (or new) gradients."""
        gradients = self.gradients() if gradients is None else gradients
        self.set_gradients(gradients)
        self.optimizer.step()
        self.oracle.step(gradients)

    def multiplied(self, gradients: Gradients, factor: float) -> Gradients:
        """Times the factor: in float32, or in float64 if the parameters are, and rounded to their dtype."""
        wide = np.float64 if self.dtype == torch.float64 else np.float32
        return [
            [None if each is None else self.rounded(each.astype(wide) * wide(factor)) for each in of_group]
            for of_group in gradients
        ]

    def measure(self, gradients: Gradients | None = None, gradient_factor: float | Tensor = 1.0) -> None:
        """One step of both inside measure_importance()."""
        gradients = self.gradients() if gradients is None else gradients
        self.set_gradients(gradients)
        with self.optimizer.measure_importance():
            self.optimizer.step(gradient_factor=gradient_factor)
        self.oracle.measure(self.multiplied(gradients, float(gradient_factor)))

    def refresh(self) -> None:
        """A refresh of both."""
        self.optimizer.refresh()
        self.oracle.refresh()

    def set_gradients(self, gradients: Gradients) -> None:
        """Give the gradients to the optimizer's parameters."""
        for parameters, of_group in zip(self.parameters, gradients, strict=True):
            for parameter, gradient in zip(parameters, of_group, strict=True):
                new = None if gradient is None else torch.from_numpy(gradient.copy())
                parameter.grad = None if new is None else new.to(self.device, self.dtype)

    def states(self) -> list[tuple[dict[str, Tensor], ParameterState | None]]:
        """The optimizer's and the oracle's state of every parameter."""
        return [
            (self.optimizer.state.get(parameter, {}), state)
            for parameters, group in zip(self.parameters, self.oracle.groups, strict=True)
            for parameter, state in zip(parameters, group.states, strict=True)
        ]

    def assert_same_selection(self) -> None:
        """Importance, rank codes and counters are equal exactly."""
        for number, (group, of_oracle) in enumerate(zip(self.optimizer.param_groups, self.oracle.groups, strict=True)):
            for counter in ("refreshes", "steps_since_refresh"):
                assert group[counter] == getattr(of_oracle, counter), f"{counter} of group {number}"
        for where, group, state, _, expected in self._compared():
            assert bool(state) == (expected is not None), f"state of {where}"
            if expected is None:
                continue
            assert state["step"].item() == expected.step, f"step of {where}"
            if group["selective"] and "importance" not in state:
                # The group has become selective since its last gradient.
                assert not expected.importance.any(), f"importance of {where}"
            elif group["selective"]:
                assert_same_numbers(f"importance of {where}", state["importance"].float(), expected.importance)
                if group["refreshes"]:  # before the first refresh no rank code means anything
                    assert_same_numbers(f"rank_code of {where}", state["rank_code"], expected.rank_code)

    def assert_same_masks(self) -> None:
        """The masks of the last step are equal exactly; needs beta1 = 0, whose first moment is the masked gradient."""
        masks = [mask for of_group in self.oracle.kept for mask in of_group]
        for (where, group, state, _, expected), mask in zip(self._compared(), masks, strict=True):
            assert group["betas"][0] == 0
            if expected is not None:
                kept = state["exp_avg"] != 0
                whole = np.ones(tuple(kept.shape), bool)
                assert_same_numbers(f"mask of {where}", kept, whole if mask is None else mask)

    def assert_close(self) -> None:
        """Parameters agree to 1e-10 (float64), or 1e-5 of the largest parameter (float32)."""
        arrays = [array for group in self.oracle.groups for array in group.parameters]
        largest = max((float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) for array in arrays), default=0.0)
        tolerance = 1e-10 if self.dtype == torch.float64 else 1e-5 * largest
        for (where, _, _, parameter, _), expected in zip(self._compared(), arrays, strict=True):
            assert_same_numbers(where, parameter.detach().double(), expected, tolerance)

    def _compared(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Tensor], Tensor, ParameterState | None]]:
        """Of every parameter: which one it is in words, its group, its state, itself, and the oracle's state."""
        for number, (group, of_oracle) in enumerate(zip(self.optimizer.param_groups, self.oracle.groups, strict=True)):
            for i, (parameter, expected) in enumerate(zip(group["params"], of_oracle.states, strict=True)):
                state = self.optimizer.state.get(parameter, {})
                yield f"parameter {i} of group {number}", group, state, parameter, expected

    def _gradient(self, scale: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        sign = self.random.choice([-1.0, 1.0], scale.shape)
        return np.asarray(scale * sign * self.random.uniform(0.1, 1.0, scale.shape))

    def _make_group(self, shapes: Sequence[tuple[int, ...]], options: dict[str, Any]) -> tuple[dict[str, Any], Group]:
        values = [torch.from_numpy(np.asarray(self.random.standard_normal(shape))).to(self.dtype) for shape in shapes]
        self.scales.append([np.exp(2 * np.asarray(self.random.standard_normal(shape))) for shape in shapes])
        parameters = [torch.nn.Parameter(Places(self.device).of(self.layout(value))) for value in values]
        arrays = [value.double().numpy().copy() for value in values]
        return {"params": parameters, **options}, Group(arrays, **{**self.group_defaults, **options})


def assert_same_numbers(what: str, actual: Tensor, expected: npt.NDArray[Any], tolerance: float = 0.0) -> None:
    """A tensor holds the numbers of an array, to the tolerance; says ``what`` differs, and where first."""
    difference = first_difference(actual.cpu(), torch.from_numpy(np.asarray(expected)), tolerance)
    assert difference is None, f"{what}: {difference}"
