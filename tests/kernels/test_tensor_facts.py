"""What is read of tensors by one call of the library is what Python says of each, and tells the same tensors apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from roast_optim.kernels import tensor_facts
from roast_optim.kernels.tensor_facts import Facts, facts

needs_reader = pytest.mark.skipif(
    tensor_facts._reader() is None, reason="no library, or a torch without DLPack's table of functions"
)


def tensors() -> list[Tensor]:
    """No two of them are used alike."""
    memory = torch.arange(64.0)
    square = memory[:36].view(6, 6)
    return [
        memory, memory[1:], memory[:36], square.t(), square[:, :1], square[::2], memory[:0], memory[:1],
        memory.view(torch.int32), memory.view(torch.bfloat16), memory.view(torch.float16), memory.view(torch.uint8),
        torch.zeros(()), torch.zeros(2, 0), nn.Parameter(torch.ones(3)), torch.ones(3).expand(2, 3),
        torch.ones(3).double(), torch.zeros(3, dtype=torch.complex64),
    ]  # fmt: skip


def slowly(given: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> Facts:
    with monkeypatch.context() as patch:
        patch.setattr(tensor_facts, "_reader", lambda: None)
        return facts(given)


@needs_reader
def test_both_ways_say_the_same_of_address_size_and_contiguity(monkeypatch: pytest.MonkeyPatch) -> None:
    given = tensors()
    fast, slow = facts(given), slowly(given, monkeypatch)
    for name in ("addresses", "sizes", "contiguous"):
        assert [int(x) for x in getattr(fast, name)] == [int(x) for x in getattr(slow, name)], name


@pytest.mark.parametrize("fast", [pytest.param(True, marks=needs_reader), False])
def test_facts_are_equal_exactly_where_memory_dtype_size_and_contiguity_are(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tensors()

    def read(tensor: Tensor) -> Facts:
        return facts([tensor]) if fast else slowly([tensor], monkeypatch)

    for i, first in enumerate(given):
        assert read(first) == read(first.detach())
        for j, second in enumerate(given):
            nothing_to_use = first.numel() == second.numel() == 0 and first.dtype == second.dtype
            if i != j and not nothing_to_use:
                assert read(first) != read(second), (i, j)


@needs_reader
def test_what_dlpack_cannot_express_is_asked_in_python() -> None:
    given = [torch.zeros(3), torch.zeros(4, device="meta")]
    assert list(facts(given).sizes) == [3, 4]


@needs_reader
def test_memory_that_is_freed_has_no_address() -> None:
    tensor = torch.ones(5)
    before = facts([tensor])
    tensor.untyped_storage().resize_(0)
    assert list(facts([tensor]).addresses) == [0]
    assert facts([tensor]) != before


@needs_reader
def test_no_tensors_and_things_that_are_none() -> None:
    assert list(facts([]).numbers) == []
    with pytest.raises((AttributeError, RuntimeError, TypeError)):
        facts([7])  # type: ignore[list-item]
