"""Whether a shared library is all there: the dynamic linker maps one that was cut off, and the process dies of it."""

from __future__ import annotations

import struct
from pathlib import Path

_MAGIC = b"\x7fELF"
_LOADED = 1  # PT_LOAD


def missing_bytes(file: Path) -> int:
    """How many bytes of a 64-bit ELF file its headers promise and the file lacks; 0 of any other file.

    Other linkers (macOS) look at the size themselves.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        header = opened.read(64)
        if header[:4] != _MAGIC[: len(header)] or header[4:5] not in (b"\x02", b""):
            return 0
        if len(header) < 64:
            return 64 - len(header)
        order = "<" if header[5] == 1 else ">"
        programs: int
        sections: int
        programs, sections = struct.unpack_from(f"{order}QQ", header, 32)
        program_size, program_count, section_size, section_count = struct.unpack_from(f"{order}4H", header, 54)
        end: int = max(64, programs + program_size * program_count, sections + section_size * section_count)
        if end > size:
            return end - size
        opened.seek(programs)
        table = opened.read(program_size * program_count)
    for number in range(program_count):
        kind, _, offset, _, _, in_file = struct.unpack_from(f"{order}2I4Q", table, number * program_size)
        if kind == _LOADED:
            end = max(end, offset + in_file)
    return max(end - size, 0)
