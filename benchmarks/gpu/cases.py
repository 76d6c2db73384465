"""Small inputs that together reach every variant of every kernel, and what each leaves behind.

``python -m benchmarks.gpu.cases`` runs all of them on the GPU once, for a tool that watches its memory accesses.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from roast_optim import RoastAdamW, symmetric_kl
from roast_optim.kernels.step import Position
from roast_optim.perturbation import NORMS, perturbed_embedding

from .report import interpret

# Blocks that are full, that are not, and a single element; several programs; nothing at all.
SHAPES = [(64, 65), (4096,), (513,), (7, 5, 3), (1,), (0,), ()]
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class StepCase:
    """Steps of RoastAdamW with ranks.

    Attributes:
        name: of the variant.
        options: of the optimizer beyond OPTIONS.
        dtype: of parameters and gradients.
        unaligned: whether parameters and gradients begin one element behind an aligned address.
        position: of a tensor with that id and number of elements in its whole parameter; None: it is the whole.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = FLOAT32
    unaligned: bool = False
    position: Callable[[int, int], Position] | None = None


# With beta1 = 0 the first moment is the masked gradient.
OPTIONS: dict[str, Any] = {"lr": 1e-2, "betas": (0.0, 0.99), "weight_decay": 0.1, "alpha": 0.5, "beta": 3.0, "seed": 7}

ROUNDED: dict[str, Any] = {"stochastic_rounding": True}


def _run(first_index: int) -> Callable[[int, int], Position]:
    return lambda parameter_id, numel: Position(parameter_id, first_index, max(numel, 1), 0)


STEP_CASES = (
    StepCase("aligned"),
    StepCase("unaligned", unaligned=True),
    StepCase("both moments", {"betas": (0.9, 0.99)}),
    StepCase("amsgrad, maximize", {"amsgrad": True, "maximize": True}),
    StepCase("step counts on the device", {"capturable": True}),
    StepCase("one draw per refresh", {"mask_schedule": "refresh"}),
    StepCase("no rescaling", {"rescale": False}),
    StepCase("importance at every other step", {"importance_every": 2}),
    StepCase("random importance", {"importance": "random"}),
    StepCase("not selective", {"selective": False}),
    StepCase("shard that begins at a multiple of four", position=_run(1_000)),
    StepCase("shard that begins between two blocks of the draw", position=_run(1_001)),
    StepCase("shard of an inner dimension", position=lambda i, _: Position(i, 7, 20, 100)),
    StepCase("offsets that pass 2^34", position=_run(2**34 - 6)),
    StepCase("inner dimension beyond 2^34", position=lambda i, _: Position(i, 2**34 + 2, 399, 2**33 + 1)),
    StepCase("bfloat16", dtype=BFLOAT16),
    StepCase("bfloat16, unaligned", dtype=BFLOAT16, unaligned=True),
    StepCase("bfloat16, moments float32", {"state_dtype": FLOAT32}, dtype=BFLOAT16),
    StepCase("float16, moments float32", {"state_dtype": FLOAT32}, dtype=FLOAT16),
    StepCase("float16, moments float32, unaligned", {"state_dtype": FLOAT32}, dtype=FLOAT16, unaligned=True),
    StepCase("float16, stochastic rounding", {**ROUNDED, "state_dtype": FLOAT32}, dtype=FLOAT16),
    StepCase(
        "bfloat16, stochastic rounding, shard that begins in the middle of a block of the bits",
        ROUNDED,
        dtype=BFLOAT16,
        position=_run(1_004),
    ),
    StepCase(
        "bfloat16, stochastic rounding, shard of an inner dimension",
        ROUNDED,
        dtype=BFLOAT16,
        position=lambda i, _: Position(i, 7, 20, 100),
    ),
    StepCase("importance bfloat16", {"importance_dtype": BFLOAT16}),
    StepCase(
        "bfloat16, importance too, stochastic rounding, amsgrad",
        {**ROUNDED, "importance_dtype": BFLOAT16, "amsgrad": True},
        dtype=BFLOAT16,
    ),
)


def optimizer_of(case: StepCase, backend: str, device: torch.device) -> RoastAdamW:
    """RoastAdamW over the tensors of a case, equal on every device."""
    parameters = [nn.Parameter(tensor) for tensor in tensors(case, device, seed=0, scale=1.0)]
    options = {**OPTIONS, **case.options}
    options["capturable"] = options.get("capturable", False) and backend != "reference"
    optimizer = RoastAdamW(parameters, backend=backend, **options)
    if case.position is not None:
        for parameter, place in optimizer.positions.items():
            optimizer.positions[parameter] = case.position(place.parameter_id, parameter.numel())
    return optimizer


def set_gradients(case: StepCase, optimizer: RoastAdamW, step: int) -> None:
    """Give the parameters the gradients of that step; none of them is zero, and they differ by orders of magnitude."""
    parameters = optimizer.param_groups[0]["params"]
    device = parameters[0].device
    for parameter, gradient in zip(parameters, tensors(case, device, seed=step, scale=0.1), strict=True):
        parameter.grad = gradient


def tensors(case: StepCase, device: torch.device, *, seed: int, scale: float) -> list[Tensor]:
    """Random tensors of SHAPES, made on the CPU: placed, they lie as the case demands."""
    generator = torch.Generator().manual_seed(seed)
    offset = int(case.unaligned)
    made = []
    for shape in SHAPES:
        numel = math.prod(shape) + offset
        sizes = scale * 10 ** torch.randn(numel, generator=generator).clamp_(-2, 2)
        signs = 2.0 * torch.randint(2, (numel,), generator=generator) - 1
        made.append((signs * sizes).to(case.dtype).to(device)[offset:].view(shape))
    return made


@dataclass(frozen=True)
class PerturbationCase:
    """A perturbed embedding."""

    norm: str
    dtype: torch.dtype
    sample_dim: int
    masked: bool

    @property
    def name(self) -> str:
        """Of the variant."""
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.norm}, {kind}{', padding' * self.masked}{', tokens first' * self.sample_dim}"

    def run(self, device: torch.device, wider: torch.dtype | None = None) -> Tensor:
        """The sum on that device; with a wider dtype it is the same input in more digits, of which torch takes care."""
        generator = torch.Generator().manual_seed(3)
        embedding, gradient = (torch.randn(3, 5, 37, generator=generator).to(self.dtype) for _ in range(2))
        gradient[1, 2] = 0.0
        gradient[2, 0, 4] = math.nan
        tokens = torch.rand(3, 5, generator=generator) < 0.7 if self.masked else None
        embedding, gradient = (tensor.to(device, wider or self.dtype) for tensor in (embedding, gradient))
        if tokens is not None:
            tokens = tokens.to(device)
        return perturbed_embedding(embedding, gradient, 0.1, self.norm, tokens=tokens, sample_dim=self.sample_dim)[0]


PERTURBATION_CASES = tuple(
    PerturbationCase(norm, dtype, sample_dim, masked)
    for norm in NORMS
    for dtype, sample_dim, masked in ((FLOAT32, 0, True), (FLOAT32, 1, False), (BFLOAT16, 0, False), (FLOAT16, 1, True))
)


@dataclass(frozen=True)
class DivergenceCase:
    """A symmetric KL divergence with both gradients."""

    dtype: torch.dtype
    classes: int
    masked: bool

    @property
    def name(self) -> str:
        """Of the variant."""
        return f"{self.classes:,} classes, {str(self.dtype).removeprefix('torch.')}{', some left out' * self.masked}"

    def run(self, device: torch.device, wider: torch.dtype | None = None) -> list[Tensor]:
        """The divergence and its two gradients; see :meth:`PerturbationCase.run`."""
        generator = torch.Generator().manual_seed(4)
        logits = [torch.randn(6, self.classes, generator=generator).to(self.dtype) for _ in range(2)]
        sides = [tensor.to(device, wider or self.dtype).requires_grad_() for tensor in logits]
        labels = torch.tensor([1, -100, 0, 1, -100, 1]).to(device) if self.masked else None
        divergence = symmetric_kl(sides[0], sides[1], labels)
        return [divergence.detach(), *torch.autograd.grad(divergence, sides)]


DIVERGENCE_CASES = tuple(
    DivergenceCase(dtype, classes, masked)
    for dtype in (FLOAT32, BFLOAT16, FLOAT16)
    for classes, masked in ((2, False), (5_000, True))
)


def run_all(device: torch.device) -> int:
    """Run every case once on that device, and say how many there were."""
    for case in STEP_CASES:
        optimizer = optimizer_of(case, "triton", device)
        set_gradients(case, optimizer, 1)
        with optimizer.measure_importance():
            optimizer.step()
        optimizer.step()  # before the first ranks
        optimizer.refresh()
        optimizer.step()
    for perturbation in PERTURBATION_CASES:
        perturbation.run(device)
    for divergence in DIVERGENCE_CASES:
        divergence.run(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return len(STEP_CASES) + len(PERTURBATION_CASES) + len(DIVERGENCE_CASES)


def main() -> None:
    """Run every case once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, in triton's interpreter")
    dry_run = parser.parse_args().dry_run
    if dry_run:
        interpret()
    print(f"{run_all(torch.device('cpu' if dry_run else 'cuda'))} cases")


if __name__ == "__main__":
    main()
