"""Peak memory of a refresh beyond the rank codes, and of a step beyond its tensors; each in a process of its own."""

from __future__ import annotations

import pytest
import torch

from . import memory
from .conftest import Row
from .contestants import FASTEST, cannot_run
from .pairs import Benchmark


@pytest.mark.parametrize("call", memory.CALLS)
@pytest.mark.parametrize("backend", ["fastest", "reference"])
def test_extra_memory(
    benchmark: Benchmark, row: Row, device: torch.device, tiny: bool, call: str, backend: str
) -> None:
    backend = FASTEST[device.type] if backend == "fastest" else backend
    workload = "110M" if call == "refresh" else "25M"  # no temporary of a step is larger than a tensor
    impossible = cannot_run(backend, device) or memory.unavailable(device)
    row(f"extra memory of a {call}, {workload}", backend, impossible)

    def measure() -> int:
        if tiny:
            return memory.of_call(call, backend, workload, device, tiny=True)
        return memory.of_call_in_fresh_process(call, backend, workload, device)

    benchmark.extra_info["extra_bytes"] = benchmark.pedantic(measure)
