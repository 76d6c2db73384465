"""Steps for the tests of the native backend: made up at random, copied, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


class StepArguments:
    """What a backend's roast_adamw_ takes; no dataclass, of which hypothesis would print every element."""

    def __init__(self, lists: list[list[Any]], options: dict[str, Any]) -> None:
        """Positional and keyword arguments."""
        self.params: list[Tensor] = lists[0]
        self.grads: list[Tensor] = lists[1]
        self.exp_avgs: list[Tensor] = lists[2]
        self.exp_avg_sqs: list[Tensor] = lists[3]
        self.max_exp_avg_sqs: list[Tensor] = lists[4]
        self.state_steps: list[Tensor] = lists[5]
        self.importances: list[Tensor] = lists[6]
        self.rank_codes: list[Tensor] = lists[7]
        self.placements: list[Placement] = lists[8]
        self.options = options

    def __repr__(self) -> str:
        """What is needed to make the case again, but for the random numbers."""
        tensors = [(tuple(p.shape), p.dtype, m.dtype) for p, m in zip(self.params, self.exp_avgs, strict=True)]
        options = {**self.options, "selection": self.options["selection"] and self.options["selection"].draw_number}
        return f"{tensors} {self.state_steps[0].item()} {self.placements} {options}"

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
        lists: list[list[Any]] = [[tensor.detach().clone() for tensor in tensors] for tensors in self.lists()[:-1]]
        if values is not None:
            for i in (0, 2, 3, 4):
                lists[i] = [tensor.to(values) for tensor in lists[i]]
        return StepArguments([*lists, list(self.placements)], dict(self.options))


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
    lists: list[list[Any]] = [
        [normal(shape, dtype) for shape in shapes],
        [normal(shape, dtype) for shape in shapes],
        [normal(shape, moment_dtype) for shape in shapes],
        [uniform(shape, moment_dtype) for shape in shapes],
        [uniform(shape, moment_dtype) for shape in shapes],
        [torch.tensor(float(steps)) for _ in shapes],
        [uniform(shape, torch.float32) for shape in shapes],
        [codes(shape) for shape in shapes],
        placements or [Placement.whole(i, torch.Size(shape).numel()) for i, shape in enumerate(shapes)],
    ]
    return StepArguments(lists, {**usual, **options})
