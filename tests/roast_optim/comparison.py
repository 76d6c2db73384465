"""RoastAdamW and its oracle, fed with the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

Shapes = Sequence[Sequence[tuple[int, ...]]]
Gradients = list[list[npt.NDArray[np.floating] | None]]
Layout = Callable[[Tensor], Tensor]

SHAPES: Shapes = [[(7, 9), (13,), ()], [(3, 4, 5), (0,), (1, 6)]]
_GROUP_OPTIONS = tuple(field.name for field in fields(Group))
_ORACLE_OPTIONS = tuple(field.name for field in fields(RoastAdamWOracle) if field.name in OPTIONS)


class Pair:
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
        for group, oracle_group in zip(self.optimizer.param_groups, self.oracle.groups, strict=True):
            assert group["refreshes"] == oracle_group.refreshes
            assert group["steps_since_refresh"] == oracle_group.steps_since_refresh
            for parameter, expected in zip(group["params"], oracle_group.states, strict=True):
                state = self.optimizer.state.get(parameter, {})
                assert bool(state) == (expected is not None)
                if expected is None:
                    continue
                assert state["step"].item() == expected.step
                if group["selective"] and "importance" not in state:
                    assert not expected.importance.any()  # the group has become selective since its last gradient
                elif group["selective"]:
                    importance = state["importance"].float().cpu().numpy()
                    np.testing.assert_array_equal(importance, expected.importance)
                    if group["refreshes"]:  # before the first refresh no rank code means anything
                        np.testing.assert_array_equal(state["rank_code"].cpu().numpy(), expected.rank_code)

    def assert_same_masks(self) -> None:
        """The masks of the last step are equal exactly; needs beta1 = 0, whose first moment is the masked gradient."""
        for group, oracle_group, masks in zip(
            self.optimizer.param_groups, self.oracle.groups, self.oracle.kept, strict=True
        ):
            assert group["betas"][0] == 0
            for parameter, expected, mask in zip(group["params"], oracle_group.states, masks, strict=True):
                if expected is not None:
                    kept = self.optimizer.state[parameter]["exp_avg"].cpu().numpy() != 0
                    np.testing.assert_array_equal(kept, np.ones(kept.shape, bool) if mask is None else mask)

    def assert_close(self) -> None:
        """Parameters agree to 1e-10 (float64), or 1e-5 of the largest parameter (float32)."""
        arrays = [array for group in self.oracle.groups for array in group.parameters]
        largest = max((float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) for array in arrays), default=0.0)
        tolerance = 1e-10 if self.dtype == torch.float64 else 1e-5 * largest
        for parameters, group in zip(self.parameters, self.oracle.groups, strict=True):
            for parameter, expected in zip(parameters, group.parameters, strict=True):
                np.testing.assert_allclose(parameter.detach().cpu().double().numpy(), expected, rtol=0, atol=tolerance)

    def _gradient(self, scale: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        sign = self.random.choice([-1.0, 1.0], scale.shape)
        return np.asarray(scale * sign * self.random.uniform(0.1, 1.0, scale.shape))

    def _make_group(self, shapes: Sequence[tuple[int, ...]], options: dict[str, Any]) -> tuple[dict[str, Any], Group]:
        values = [torch.from_numpy(np.asarray(self.random.standard_normal(shape))).to(self.dtype) for shape in shapes]
        self.scales.append([np.exp(2 * np.asarray(self.random.standard_normal(shape))) for shape in shapes])
        parameters = [torch.nn.Parameter(Places(self.device).of(self.layout(value))) for value in values]
        arrays = [value.double().numpy().copy() for value in values]
        return {"params": parameters, **options}, Group(arrays, **{**self.group_defaults, **options})
