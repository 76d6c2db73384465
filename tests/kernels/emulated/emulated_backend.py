"""The native backend compiled for another processor and run by an emulator, with the functions of every backend."""

from __future__ import annotations

import ast
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roast_optim.kernels.step import CHOICES, SCALARS, TENSORS, StepOptions, StepRow

ROOT = Path(__file__).resolve().parents[3]
NATIVE = ROOT / "kernels" / "native"
DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # Dtype in kernels.h


def compile_calls(compiler: str, program: Path) -> None:
    """Compile calls.cpp with the native kernels as setup.py does, but for the files of x86 processors and of Python.

    Raises:
        AssertionError: the compiler fails or warns; the message is what it said.
    """
    settings = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("FLAGS", "INSTRUCTION_SETS")
    }
    sources = sorted(
        file for file in NATIVE.glob("*.cpp") if file.name not in {*settings["INSTRUCTION_SETS"], "facts.cpp"}
    )
    command = [compiler, *settings["FLAGS"], "-Werror", "-static", f"-I{NATIVE}", f"-o{program}"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("calls.cpp")), *map(str, sources)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


class EmulatedBackend:
    """Every call goes to the process, and the tensors that come back overwrite those that went."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start the program that compile_calls made."""
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        """End the process.

        Raises:
            AssertionError: it ended otherwise than by the end of its input.
        """
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0

    def roast_adamw_(self, rows: Sequence[StepRow], options: StepOptions) -> None:
        """One step, in place; see :func:`roast_optim.kernels.reference.roast_adamw_`."""
        names = {name for name, _ in rows[0].tensors() if options.uses(name)}
        selection = options.selection
        dtypes = rows[0].param.dtype, rows[0].exp_avg.dtype, rows[0].score_dtype
        integers = [len(rows), *(DTYPES[dtype] for dtype in dtypes)]
        reals = []
        for name, kind in SCALARS.items():
            number = scalar(options, name)
            (reals if kind == "double" else integers).append(number)
        integers += [row.param.numel() for row in rows]
        integers += [number for numbers in zip(*(row.position for row in rows), strict=True) for number in numbers]
        integers += [*(name in names for name in TENSORS), selection is not None]
        tensors = [getattr(row, name) for name in TENSORS if name in names for row in rows]
        if selection is not None:
            tensors += [selection.thresholds, selection.rescaling]
        self._call(0, integers, reals, tensors)

    def accumulate_importance_(self, importances: list[Tensor], grads: list[Tensor]) -> None:
        """Add the squared gradients to the importance scores, in place."""
        self._call(1, [DTYPES[grads[0].dtype], *sizes(grads)], [], [*importances, *grads])

    def histogram_(self, scores: list[Tensor], counts: Tensor) -> None:
        """Add the number of scores in each of the 65,536 bins to ``counts``."""
        self._call(2, [DTYPES[scores[0].dtype], *sizes(scores)], [], [*scores, counts])

    def assign_rank_codes_(self, importances: list[Tensor], rank_codes: list[Tensor], table: Tensor) -> None:
        """Write ``table[bin]`` into the rank codes and reset the importance scores to zero."""
        self._call(3, [DTYPES[importances[0].dtype], *sizes(importances)], [], [*importances, *rank_codes, table])

    def _call(self, function: int, integers: list[int], reals: list[float], tensors: list[Tensor]) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        words = [number % 2**64 for number in integers]  # negative numbers and seeds alike
        message = struct.pack(f"<qq{len(words)}Q", function, len(words), *words)
        message += struct.pack(f"<q{len(reals)}dq", len(reals), *reals, len(tensors))
        for tensor in tensors:
            message += struct.pack("<q", tensor.nbytes) + bytes_of(tensor).tobytes()
        self.process.stdin.write(message)
        self.process.stdin.flush()
        (length,) = struct.unpack("<q", self.process.stdout.read(8))
        if length:
            raise ValueError(self.process.stdout.read(length).decode())
        for tensor in tensors:
            bytes_of(tensor)[:] = np.frombuffer(self.process.stdout.read(tensor.nbytes), np.uint8)


def scalar(options: StepOptions, name: str) -> Any:
    """A scalar as the library takes it; of a step without selection, of what says nothing, zero or below."""
    if hasattr(options, name):
        value = getattr(options, name)
    else:
        value = getattr(options.selection, name, 0 if name in ("seed", "acts_on") else -1)
    if value is None:
        return -1
    return CHOICES[name].index(value) if name in CHOICES and isinstance(value, str) else value


def sizes(tensors: list[Tensor]) -> list[int]:
    """Their number, and the number of elements of each."""
    return [len(tensors), *(tensor.numel() for tensor in tensors)]


def bytes_of(tensor: Tensor) -> Any:
    """The memory of a contiguous tensor."""
    assert tensor.is_contiguous()
    return tensor.detach().view(-1).view(torch.uint8).numpy()
