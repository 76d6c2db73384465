"""One optimizer step on lists of tensors: RoastAdamW, torch's AdamW, and RoAST as one would first write it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from .conftest import Row
from .contestants import (
    FASTEST,
    FUSED_ADAMW,
    STRAIGHTFORWARD,
    backend_name,
    cannot_run,
    roast,
    straightforward_roast,
    torch_adamw,
)
from .pairs import Benchmark, Contestant, compare, copy_of
from .workloads import WORKLOADS, Shapes

every_workload = pytest.mark.parametrize("workload", WORKLOADS)


@every_workload
@pytest.mark.parametrize("importance_every", [1, 4])
def test_fastest_backend(
    benchmark: Benchmark,
    row: Row,
    device: torch.device,
    sizes: Mapping[str, Shapes],
    workload: str,
    importance_every: int,
) -> None:
    backend = FASTEST[device.type]
    mode = "" if importance_every == 1 else f", importance every {importance_every}"
    row(f"step, {workload}{mode}", backend_name(backend), cannot_run(backend, device))
    shapes = sizes[workload]
    candidate = roast(backend, shapes, device, importance_every=importance_every)
    with_copy(benchmark, candidate, [torch_adamw("fused", shapes, device, calls=importance_every)], device)


def test_fastest_backend_in_bfloat16(
    benchmark: Benchmark, row: Row, device: torch.device, sizes: Mapping[str, Shapes]
) -> None:
    backend = FASTEST[device.type]
    row("step, 25M bfloat16", backend_name(backend), cannot_run(backend, device))
    candidate = roast(backend, sizes["25M"], device, dtype=torch.bfloat16)
    with_copy(benchmark, candidate, [torch_adamw("fused", sizes["25M"], device, dtype=torch.bfloat16)], device)


def test_fastest_backend_against_straightforward(
    benchmark: Benchmark, row: Row, device: torch.device, sizes: Mapping[str, Shapes]
) -> None:
    backend = FASTEST[device.type]
    row("step, 110M", backend_name(backend), cannot_run(backend, device))
    candidate = roast(backend, sizes["110M"], device)
    compare(benchmark, candidate, [straightforward_roast(sizes["110M"], device)], device)


@pytest.mark.parametrize("workload", ["25M", "1,000 tiny tensors"])
def test_reference_backend(
    benchmark: Benchmark, row: Row, device: torch.device, sizes: Mapping[str, Shapes], workload: str
) -> None:
    row(f"step, {workload}", backend_name("reference"), cannot_run("reference", device))
    candidate = roast("reference", sizes[workload], device)
    with_copy(benchmark, candidate, [torch_adamw("fused", sizes[workload], device)], device)


@every_workload
@pytest.mark.parametrize("kind", ["foreach", "for-loop"])
def test_torch_adamw(
    benchmark: Benchmark, row: Row, device: torch.device, sizes: Mapping[str, Shapes], workload: str, kind: str
) -> None:
    row(f"step, {workload}", f"torch AdamW, {kind}", cannot_run("reference", device))
    candidate = torch_adamw(kind, sizes[workload], device)
    with_copy(benchmark, candidate, [torch_adamw("fused", sizes[workload], device)], device)
