"""A refresh: percentile ranks of the importance of all elements, by histogram and by the authors' double argsort."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from roast_optim.importance import percentile_ranks

from . import memory
from .conftest import Compare, Row
from .contestants import FASTEST, cannot_run, double_argsort, ranked_optimizer, refreshes, squared_gradients
from .pairs import Contestant, copy_like
from .workloads import Shapes

DOUBLE_ARGSORT = "double argsort"
HOST = torch.device("cpu")


@pytest.mark.parametrize("kind", ["fastest", "reference"])
def test_refresh(row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes], kind: str) -> None:
    backend = FASTEST[device.type] if kind == "fastest" else "reference"
    row("refresh, 110M", backend, cannot_run(backend, device))
    optimizer = ranked_optimizer(backend, sizes["110M"], device)
    scores = squared_gradients(optimizer)
    candidate = refreshes(optimizer, scores, backend)
    compare(candidate, [copy_like(candidate, device)])
    codes = [state["rank_code"] for state in optimizer.state.values()]
    assert all(map(torch.equal, codes, percentile_ranks(scores))), "rank codes differ from the reference's"


def test_double_argsort(
    benchmark: Any, row: Row, compare: Compare, device: torch.device, sizes: Mapping[str, Shapes]
) -> None:
    row("refresh, 110M", DOUBLE_ARGSORT, cannot_run("reference", device) or memory.unavailable(HOST))
    optimizer = ranked_optimizer("reference", sizes["110M"], device)
    scores = squared_gradients(optimizer)

    def argsort() -> None:
        benchmark.extra_info["extra_bytes"] = memory.peak_extra_memory(lambda: double_argsort(scores), HOST)

    compare(Contestant(DOUBLE_ARGSORT, argsort), [refreshes(optimizer, scores, "reference")], once=True)
