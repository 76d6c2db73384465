"""One launch for many tensors: a table of their addresses, and which program handles which part of which tensor.

A row of the table is int64: number of elements, first program, then what the kernel wants to know of the tensor.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803, SIM108

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import reduce
from operator import or_

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import BLOCKS_PER_PROGRAM, DeviceTables, block_size

_BEFORE = 2  # numbers of a row before those that the kernel wants


class PointerTable:
    """The tensors of one launch, all on one device.

    Attributes:
        columns: numbers per row.
        block, chunk: elements per block and per program.
    """

    def __init__(self, device: torch.device, numels: list[int], columns: list[list[int]]) -> None:
        self.device, self.block = device, block_size(device)
        self.chunk = self.block * BLOCKS_PER_PROGRAM
        self.columns = _BEFORE + len(columns[0])
        self._programs = [-(-numel // self.chunk) for numel in numels]
        self._rows = array("q")
        first_program = 0
        for numel, count, row in zip(numels, self._programs, columns, strict=True):
            self._rows.extend((numel, first_program, *row))
            first_program += count
        self.programs = first_program

    def set_column(self, column: int, numbers: Sequence[int]) -> None:
        """Write one number per row."""
        self._rows[_BEFORE + column :: self.columns] = array("q", numbers)

    def on_device(self, tables: DeviceTables) -> tuple[Tensor, Tensor]:
        """The rows as they are now, int64 ``[tensors, columns]``; and the tensor of each program, int32 ``[programs]``.

        ``tables`` serves this table alone.
        """
        rows = tables.upload(torch.frombuffer(self._rows, dtype=torch.int64), self.device)
        return rows, tables.get("programs", self.device, lambda: self._tensor_of_program(tables))

    def _tensor_of_program(self, tables: DeviceTables) -> Tensor:
        """[0, 0, 0, 1, 2, 2, ...]: as many of each index as that tensor has programs."""
        indices = torch.arange(len(self._programs), dtype=torch.int32, device="cpu")
        return tables.upload(indices.repeat_interleave(torch.tensor(self._programs, device="cpu")), self.device)

    @property
    def grid(self) -> tuple[int]:
        """Number of programs."""
        return (self.programs,)

    @property
    def constants(self) -> dict[str, int]:
        """What :func:`program_part` has to know when the kernel is compiled."""
        return {"COLUMNS": self.columns, "CHUNK": self.chunk, "BLOCK": self.block}


def is_aligned(addresses: list[int]) -> bool:
    """Whether all addresses are multiples of 16 bytes, so that accesses can be 128 bits wide."""
    return reduce(or_, addresses) & 15 == 0


# ------------------------------------------------------------------------------------------------- inside the kernels


@triton.jit
def program_part(rows, tensor_of_program, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """What this program has to do: a pointer to its tensor's row; first element, end of its full blocks, end."""
    program = tl.program_id(0)
    row = rows + tl.load(tensor_of_program + program).to(tl.int64) * COLUMNS
    begin = (program - tl.load(row + 1)) * CHUNK
    end = tl.minimum(begin + CHUNK, tl.load(row))
    return row + 2, begin, begin + (end - begin) // BLOCK * BLOCK, end


@triton.jit
def elements(row, COLUMN: tl.constexpr, start, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Pointers to the BLOCK elements from ``start`` of the tensor whose address stands in that column.

    The address is read anew for every block, which costs less than the registers to keep it. ALIGNED: it is a multiple
    of 16 bytes. The offsets have 64 bits: for narrower ones triton takes AMD's buffer instructions, which need a loop
    over the lanes where the address is no kernel argument.
    """
    pointer = tl.load(row + COLUMN).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + (start + tl.arange(0, BLOCK))


@triton.jit
def load(pointers, mask, MASKED: tl.constexpr):
    """A block; without MASKED every element exists, which makes the widest accesses possible."""
    if MASKED:
        values = tl.load(pointers, mask=mask, other=0)
    else:
        values = tl.load(pointers)
    return values


@triton.jit
def store(pointers, values, mask, MASKED: tl.constexpr):
    """Write a block, in the dtype of the tensor."""
    values = values.to(pointers.dtype.element_ty)
    if MASKED:
        tl.store(pointers, values, mask=mask)
    else:
        tl.store(pointers, values)
