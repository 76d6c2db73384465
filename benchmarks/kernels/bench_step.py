"""One optimizer step on lists of tensors: RoastAdamW, torch's AdamW, and RoAST as one would first write it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from .conftest import Compare, Row
from .contestants import (
    FASTEST,
    STRAIGHTFORWARD,
    backend_name,
    cannot_run,
    roast,
    straightforward_roast,
    torch_adamw,
)
from .pairs import copy_like
from .workloads import WORKLOADS, Shapes

every_workload = pytest.mark.parametrize("workload", WORKLOADS)


@every_workload
@pytest.mark.parametrize("every", [1, 4])
def test_fastest_backend(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes], workload: str, every: int
) -> None:
    backend, shapes = FASTEST[device.type], sizes[workload]
    mode = "" if every == 1 else f", importance_every={every}"
    row(f"step, {workload}", backend_name(backend) + mode, cannot_run(backend, device))
    candidate = roast(backend, shapes, device, importance_every=every)
    compare(candidate, [copy_like(candidate, device), torch_adamw("fused", shapes, device, calls=every)])


def test_fastest_backend_in_bfloat16(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes]
) -> None:
    backend, shapes = FASTEST[device.type], sizes["25M"]
    row("step, 25M bfloat16", backend_name(backend), cannot_run(backend, device))
    candidate = roast(backend, shapes, device, dtype=torch.bfloat16)
    compare(candidate, [copy_like(candidate, device), torch_adamw("fused", shapes, device, dtype=torch.bfloat16)])


def test_fastest_backend_against_straightforward(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes]
) -> None:
    backend, shapes = FASTEST[device.type], sizes["110M"]
    row("step, 110M", backend_name(backend), cannot_run(backend, device))
    compare(roast(backend, shapes, device), [straightforward_roast(shapes, device)])


@pytest.mark.parametrize("workload", ["25M", "1,000 tiny tensors"])
def test_reference_backend(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes], workload: str
) -> None:
    row(f"step, {workload}", backend_name("reference"), cannot_run("reference", device))
    candidate = roast("reference", sizes[workload], device)
    compare(candidate, [copy_like(candidate, device), torch_adamw("fused", sizes[workload], device)])


@every_workload
@pytest.mark.parametrize("kind", ["foreach", "for-loop"])
def test_torch_adamw(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes], workload: str, kind: str
) -> None:
    row(f"step, {workload}", f"torch AdamW, {kind}", cannot_run("reference", device))
    candidate = torch_adamw(kind, sizes[workload], device)
    compare(candidate, [copy_like(candidate, device), torch_adamw("fused", sizes[workload], device)])


@every_workload
def test_straightforward_roast(
    row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes], workload: str
) -> None:
    row(f"step, {workload}", STRAIGHTFORWARD, cannot_run("reference", device))
    compare(straightforward_roast(sizes[workload], device), [torch_adamw("fused", sizes[workload], device)])
