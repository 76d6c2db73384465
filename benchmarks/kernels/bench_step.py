"""One optimizer step on lists of tensors: RoastAdamW, torch's AdamW, and RoAST as one would first write it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch

from roast_optim.kernels import native

from .conftest import Compare, Row
from .contestants import (
    FASTEST,
    STRAIGHTFORWARD,
    cannot_run,
    ranked_optimizer,
    roast,
    roast_steps,
    straightforward_roast,
    torch_adamw,
)
from .pairs import copy_like
from .workloads import WORKLOADS, Shapes

every_workload = pytest.mark.parametrize("workload", WORKLOADS)


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Name of the instruction set of the native backend; the one in use comes back afterwards."""
    before = native.instruction_set() if native.unavailable() is None else None
    yield request.param
    if before is not None:
        native.use_instruction_set(before)


@every_workload
@pytest.mark.parametrize(
    ("device", "instruction_set"),
    [("cpu", "avx512"), ("cpu", "avx2"), ("cpu", "portable"), ("cuda", None)],
    indirect=True,
)
def test_fastest_backend(
    row: Row,
    compare: Compare,
    device: torch.device,
    instruction_set: str | None,
    sizes: Mapping[str, Shapes],
    workload: str,
) -> None:
    backend, shapes = FASTEST[device.type], sizes[workload]
    name = f"{backend} ({instruction_set})" if instruction_set else backend
    row(f"step, {workload}", name, cannot_run(backend, device) or cannot_use(instruction_set))
    candidate = roast(backend, shapes, device)
    compare(candidate, [copy_like(candidate, device), torch_adamw("fused", shapes, device)])


@every_workload
def test_importance_every_fourth_step(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes], workload: str
) -> None:
    backend, shapes = FASTEST[device.type], sizes[workload]
    row(f"step, {workload}", f"{backend}, importance_every=4", cannot_run(backend, device))
    candidate = roast(backend, shapes, device, importance_every=4)
    compare(candidate, [copy_like(candidate, device), torch_adamw("fused", shapes, device, calls=4)])


@every_workload
def test_pretrained_decay(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes], workload: str
) -> None:
    """Against the step without it: what a pull to the pre-trained weights costs."""
    backend, shapes = FASTEST[device.type], sizes[workload]
    row(f"step, {workload}", f"{backend}, pretrained_decay", cannot_run(backend, device))
    with_decay = ranked_optimizer(backend, shapes, device, pretrained_decay=1.0, pretrained_decay_by="rank")
    candidate = roast_steps(f"{backend}, pretrained_decay", with_decay)
    compare(candidate, [copy_like(candidate, device), roast(backend, shapes, device)])


def test_bfloat16(row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes]) -> None:
    backend, shapes = FASTEST[device.type], sizes["25M"]
    row("step, 25M bfloat16", backend, cannot_run(backend, device))
    candidate = roast(backend, shapes, device, dtype=torch.bfloat16)
    compare(candidate, [copy_like(candidate, device), torch_adamw("fused", shapes, device, dtype=torch.bfloat16)])


@pytest.mark.parametrize("importance_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stochastic_rounding(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes], importance_dtype: torch.dtype
) -> None:
    """Against the same step to nearest, whose importance is float32."""
    backend, shapes = FASTEST[device.type], sizes["25M"]
    more = "" if importance_dtype is torch.float32 else ", importance bfloat16"
    row("step, 25M bfloat16", f"{backend}, stochastic_rounding{more}", cannot_run(backend, device))
    candidate, to_nearest = (
        roast(backend, shapes, device, dtype=torch.bfloat16, seed=seed, **options)
        for seed, options in enumerate(({"stochastic_rounding": True, "importance_dtype": importance_dtype}, {}))
    )
    compare(candidate, [copy_like(candidate, device), to_nearest])


def test_fastest_backend_against_straightforward(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes]
) -> None:
    backend, shapes = FASTEST[device.type], sizes["110M"]
    row("step, 110M", backend, cannot_run(backend, device))
    compare(roast(backend, shapes, device), [straightforward_roast(shapes, device)])


@pytest.mark.parametrize("workload", ["25M", "1,000 tiny tensors"])
def test_reference_backend(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes], workload: str
) -> None:
    row(f"step, {workload}", "reference", cannot_run("reference", device))
    candidate = roast("reference", sizes[workload], device)
    compare(candidate, [copy_like(candidate, device), torch_adamw("fused", sizes[workload], device)])


@every_workload
@pytest.mark.parametrize("kind", ["fused", "foreach", "for-loop"])
def test_torch_adamw(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes], workload: str, kind: str
) -> None:
    """The fused one against itself shows how far a ratio can be trusted."""
    row(f"step, {workload}", f"torch AdamW, {kind}", cannot_run("reference", device))
    candidate = torch_adamw(kind, sizes[workload], device)
    compare(candidate, [copy_like(candidate, device), torch_adamw("fused", sizes[workload], device)])


@every_workload
def test_straightforward_roast(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes], workload: str
) -> None:
    row(f"step, {workload}", STRAIGHTFORWARD, cannot_run("reference", device))
    compare(straightforward_roast(sizes[workload], device), [torch_adamw("fused", sizes[workload], device)])


def cannot_use(instruction_set: str | None) -> str | None:
    """Use that instruction set from now on; why not, if it cannot be used."""
    if instruction_set is not None:
        try:
            native.use_instruction_set(instruction_set)
        except ValueError as error:
            return str(error)
    return None
