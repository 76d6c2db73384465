"""Steps for the tests of the native backend: made up at random, copied, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from roast_optim.kernels import native
from roast_optim.kernels.backend import Placement, Selection
from roast_optim.masking import keep_thresholds, rescaling_factors


def _has(name: str) -> bool:
    if native.unavailable() is not None:  # no compiler here: tests/test_packaging.py covers that
        return False
    before = native.instruction_set()
    try:
        native.use_instruction_set(name)
    except ValueError:
        return False
    native.use_instruction_set(before)
    return True


INSTRUCTION_SETS = [name for name in ("avx512", "avx2", "portable") if _has(name)]


@contextmanager
def using(instruction_set: str, threads: int = 1) -> Iterator[None]:
    """An instruction set and a number of threads for the calls inside."""
    before, threads_before = native.instruction_set(), torch.get_num_threads()
    try:
        native.use_instruction_set(instruction_set)
        torch.set_num_threads(threads)
        yield
    finally:
        native.use_instruction_set(before)
        torch.set_num_threads(threads_before)


def selection(
    draw_number: int | None = None, *, alpha: float = 0.5, beta: float = 5.0, seed: int = 2**40 + 7
) -> Selection:
    """A selection that keeps about half of the elements with evenly spread rank codes."""
    return Selection(seed, keep_thresholds(alpha, beta), rescaling_factors(alpha, beta), draw_number)


@dataclass(repr=False)
class StepArguments:
    """What a backend's roast_adamw_ takes."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    state_steps: list[Tensor]
    importances: list[Tensor]
    rank_codes: list[Tensor]
    placements: list[Placement]
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """What step_arguments was asked for."""
        tensors = [(tuple(p.shape), p.dtype, m.dtype, p.data_ptr() % 64) for p, m in zip(self.params, self.exp_avgs, strict=True)]
        return f"{tensors} {self.state_steps[0].item()} {self.placements} {self.options}"

    def run(self, backend: Any) -> StepArguments:
        """Take the step with a backend's module, in place."""
        backend.roast_adamw_(*self.lists(), **self.options)
        return self

    def lists(self) -> list[list[Any]]:
        """The positional arguments."""
        return [
            self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, self.max_exp_avg_sqs, self.state_steps,
            self.importances, self.rank_codes, self.placements,
        ]  # fmt: skip

    def tensors(self) -> list[Tensor]:
        """All tensors."""
        return [tensor for entries in self.lists()[:-1] for tensor in entries]

    def copy(self, *, values: torch.dtype | None = None) -> StepArguments:
        """A deep copy; with ``values`` the parameters and moments are of that dtype."""

        def copied(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.detach().clone() for tensor in tensors]

        def converted(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.detach().clone().to(values or tensor.dtype) for tensor in tensors]

        return StepArguments(
            converted(self.params), copied(self.grads), converted(self.exp_avgs), converted(self.exp_avg_sqs),
            converted(self.max_exp_avg_sqs), copied(self.state_steps), copied(self.importances),
            copied(self.rank_codes), list(self.placements), dict(self.options),
        )  # fmt: skip


def step_arguments(
    shapes: list[tuple[int, ...]],
    *,
    dtype: torch.dtype = torch.float32,
    moment_dtype: torch.dtype = torch.float32,
    placements: list[Placement] | None = None,
    offset: int = 0,
    steps: int = 3,
    seed: int = 0,
    **options: Any,
) -> StepArguments:
    """A step with random tensors of these shapes.

    Args:
        offset: every tensor begins so many elements behind an aligned address.
        steps: step count before the step.
        options: of roast_adamw_; the rest are the usual ones, with selection.
    """
    generator = torch.Generator().manual_seed(seed)

    def placed(values: Tensor) -> Tensor:
        return torch.cat([values.new_zeros(offset), values.reshape(-1)])[offset:].view(values.shape)

    def normal(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return placed(torch.randn(shape, generator=generator).to(dtype))

    def uniform(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return placed(torch.rand(shape, generator=generator).to(dtype))

    def codes(shape: tuple[int, ...]) -> Tensor:
        return placed(torch.randint(256, shape, generator=generator).to(torch.uint8))

    usual: dict[str, Any] = {
        "lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False, "maximize": False,
        "capturable": False, "accumulate": True, "selection": selection(),
    }  # fmt: skip
    return StepArguments(
        [normal(shape, dtype) for shape in shapes],
        [normal(shape, dtype) for shape in shapes],
        [normal(shape, moment_dtype) for shape in shapes],
        [uniform(shape, moment_dtype) for shape in shapes],
        [uniform(shape, moment_dtype) for shape in shapes],
        [torch.tensor(float(steps)) for _ in shapes],
        [uniform(shape, torch.float32) for shape in shapes],
        [codes(shape) for shape in shapes],
        placements or [Placement.whole(i, torch.Size(shape).numel()) for i, shape in enumerate(shapes)],
        {**usual, **options},
    )
