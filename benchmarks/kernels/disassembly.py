"""What a compiled GPU kernel looks like to the hardware: instructions, loops and widths of memory accesses.

NVIDIA: the listing of ``cuobjdump -sass``. AMD: the assembly text that triton keeps. In both, a loop is what lies
between a backward branch and its destination.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

_SASS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?);", re.MULTILINE)
_GCN = re.compile(r"^\t([sv]_\w+|(?:global|buffer|flat|scratch|ds)_\w+)\s*([^;\n]*)", re.MULTILINE)
_GCN_LABEL = re.compile(r"^(\.L\w+):", re.MULTILINE)
_SASS_BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_GCN_BYTES = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "short": 2, "ubyte": 1, "byte": 1}


@dataclass(frozen=True)
class Instruction:
    """One instruction of a listing.

    Attributes:
        position: orders the instructions.
        opcode: with its modifiers, without its predicate.
        conditional: whether the next instruction may follow even if this one branches or exits.
        target: position to which it branches.
    """

    position: int
    opcode: str
    conditional: bool = False
    target: int | None = None

    @property
    def exits(self) -> bool:
        """Whether the thread may end here."""
        return self.opcode in ("EXIT", "s_endpgm")


@dataclass(frozen=True)
class Listing:
    """A disassembled kernel.

    Attributes:
        instructions: in order, padding left out.
        registers: per thread; for AMD vector registers.
        spills: instructions that access spilled registers (NVIDIA), spilled registers (AMD).
        shared_bytes: shared memory per program.
    """

    instructions: list[Instruction]
    registers: int
    spills: int
    shared_bytes: int

    def main_loop(self) -> list[Instruction]:
        """The loop with the most 128-bit accesses, the shortest of several; without a loop all up to the last exit.

        Branches inside it are counted as if everything were executed.
        """
        loops = []
        for last, branch in enumerate(self.instructions):
            first = self._index(branch.target) if branch.target is not None else last
            if first < last and last in self._distances(first):  # else a piece of code that was placed out of line
                loops.append(self.instructions[first : last + 1])
        if loops:
            return max(loops, key=lambda loop: (wide_accesses(loop), -len(loop)))
        return self.instructions[: max(self._exits()) + 1]

    def outside_main_loop(self) -> int:
        """How many instructions a program executes before and after its main loop, at least; 0 without a loop."""
        loop = self.main_loop()
        first, last = self._index(loop[0].position), self._index(loop[-1].position)
        if loop[-1].exits:
            return 0
        after = self._distances(last + 1)
        return self._distances(0)[first] + min(after[i] + 1 for i in self._exits() if i in after)

    def _exits(self) -> list[int]:
        return [i for i, instruction in enumerate(self.instructions) if instruction.exits]

    def _index(self, position: int) -> int:
        """Of the first instruction at or after a position."""
        return bisect_left(self.instructions, position, key=lambda instruction: instruction.position)

    def _distances(self, start: int) -> dict[int, int]:
        """How many instructions come before each one that can be reached from ``start``, on the shortest way."""
        distances, queue = {start: 0}, deque([start])
        while queue:
            i = queue.popleft()
            instruction = self.instructions[i]
            following = [] if instruction.target is None else [self._index(instruction.target)]
            if instruction.conditional or not (following or instruction.exits):
                following.append(i + 1)
            for successor in following:
                if successor < len(self.instructions) and successor not in distances:
                    distances[successor] = distances[i] + 1
                    queue.append(successor)
        return distances


def wide_accesses(instructions: list[Instruction]) -> int:
    """How many instructions move 128 bits per thread between registers and global memory."""
    return accesses(instructions, "load")[16] + accesses(instructions, "store")[16]


def accesses(instructions: list[Instruction], kind: str) -> Counter[int]:
    """How many global-memory instructions of a kind ("load", "store", "atomic") per width in bytes per thread."""
    widths: Counter[int] = Counter()
    for instruction in instructions:
        found = _global_access(instruction.opcode)
        if found is not None and found[0] == kind:
            widths[found[1]] += 1
    return widths


def _global_access(opcode: str) -> tuple[str, int] | None:
    name, *modifiers = opcode.split(".")
    if name in ("LDG", "STG"):
        width = next((_SASS_BYTES[modifier] for modifier in modifiers if modifier in _SASS_BYTES), 4)
        return ("load" if name == "LDG" else "store"), width
    if name in ("RED", "REDG", "ATOMG"):
        return "atomic", 8 if "64" in modifiers else 4
    match = re.fullmatch(r"(?:global|buffer|flat)_(load|store|atomic)_(\w+)", opcode)
    if match is None:
        return None
    if match[1] == "atomic":
        return "atomic", 8 if match[2].endswith("x2") else 4
    return match[1], _GCN_BYTES[match[2].split("_")[0]]


def nvidia_listing(cubin: bytes, tools: Path, shared_bytes: int) -> Listing:
    """The disassembly of a cubin by the cuobjdump in folder ``tools``."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text, usage = (
            subprocess.run([tools / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-sass", "-res-usage")
        )
    instructions = []
    for address, predicate, opcode, operands in _SASS.findall(text):
        target = re.search(r"(0x[0-9a-f]+)\s*$", operands) if opcode.startswith("BRA") else None
        conditional = bool(predicate) or (target is not None and "UP" in operands)
        if opcode != "NOP":
            instructions.append(
                Instruction(int(address, 16), opcode, conditional, int(target[1], 16) if target else None)
            )
    while instructions and instructions[-1].target == instructions[-1].position:
        instructions.pop()  # the endless loop behind the last exit
    spills = sum(instruction.opcode.split(".")[0] in ("LDL", "STL") for instruction in instructions)
    registers = re.search(r"REG:(\d+)", usage)
    if registers is None:
        raise RuntimeError(f"cuobjdump -res-usage told no number of registers: {usage!r}")
    return Listing(instructions, int(registers[1]), spills, shared_bytes)


def amd_listing(assembly: str) -> Listing:
    """The listing of triton's assembly text for AMD."""
    labels = {match[1]: match.start() for match in _GCN_LABEL.finditer(assembly)}
    instructions = []
    for match in _GCN.finditer(assembly):
        label = re.search(r"(\.L\w+)", match[2]) if "branch" in match[1] else None
        conditional = match[1].startswith("s_cbranch")
        instructions.append(Instruction(match.start(), match[1], conditional, labels[label[1]] if label else None))
    numbers = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)$", assembly, re.MULTILINE)}
    spills = numbers["vgpr_spill_count"] + numbers["sgpr_spill_count"]
    return Listing(instructions, numbers["vgpr_count"], spills, numbers["group_segment_fixed_size"])
