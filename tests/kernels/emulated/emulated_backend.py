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

from roast_optim.kernels.backend import Placement, Selection

ROOT = Path(__file__).resolve().parents[3]
NATIVE = ROOT / "kernels" / "native"
DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # Dtype in kernels.h


def compile_calls(compiler: str, program: Path) -> None:
    """Compile calls.cpp with the native kernels as setup.py does, but for the files of x86 processors.

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
    sources = sorted(file for file in NATIVE.glob("*.cpp") if file.name not in settings["INSTRUCTION_SETS"])
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

    def roast_adamw_(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
        importances: list[Tensor],
        rank_codes: list[Tensor],
        placements: list[Placement],
        *,
        selection: Selection | None,
        **options: Any,
    ) -> None:
        """One step, in place; see :func:`roast_optim.kernels.reference.roast_adamw_`."""
        lists = [params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps, importances, rank_codes]
        used = [True, True, True, True, options["amsgrad"], True, options["accumulate"], selection is not None]
        integers = [len(params), options["maximize"], DTYPES[params[0].dtype], DTYPES[exp_avgs[0].dtype]]
        draw_number = -1 if selection is None or selection.draw_number is None else selection.draw_number
        integers += [0 if selection is None else selection.seed, draw_number]
        integers += [param.numel() for param in params]
        integers += [number for numbers in zip(*placements, strict=True) for number in numbers]
        tensors = [tensor for entries, use in zip(lists, used, strict=True) if use for tensor in entries]
        if selection is not None:
            tensors += [selection.thresholds, selection.rescaling]
        reals = [options[name] for name in ("lr", "beta1", "beta2", "eps", "weight_decay")]
        self._call(0, [*integers, *used], reals, tensors)

    def accumulate_importance_(self, importances: list[Tensor], grads: list[Tensor]) -> None:
        """Add the squared gradients to the importance scores, in place."""
        self._call(1, [DTYPES[grads[0].dtype], *sizes(grads)], [], [*importances, *grads])

    def histogram_(self, scores: list[Tensor], counts: Tensor) -> None:
        """Add the number of scores in each of the 65,536 bins to ``counts``."""
        self._call(2, sizes(scores), [], [*scores, counts])

    def assign_rank_codes_(self, importances: list[Tensor], rank_codes: list[Tensor], table: Tensor) -> None:
        """Write ``table[bin]`` into the rank codes and reset the importance scores to zero."""
        self._call(3, sizes(importances), [], [*importances, *rank_codes, table])

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


def sizes(tensors: list[Tensor]) -> list[int]:
    """Their number, and the number of elements of each."""
    return [len(tensors), *(tensor.numel() for tensor in tensors)]


def bytes_of(tensor: Tensor) -> Any:
    """The memory of a contiguous tensor."""
    assert tensor.is_contiguous()
    return tensor.detach().view(-1).view(torch.uint8).numpy()
