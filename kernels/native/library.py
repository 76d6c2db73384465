"""The shared library with the native kernels: where it is, what it offers, and the threads it runs in."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from ..forked import threads as threads
from ..step import SCALARS, TENSORS, Position
from .elf import missing_bytes

_INTERFACE = 3  # ROAST_INTERFACE in interface.h
_INSTRUCTION_SET = "ROAST_NATIVE_ISA"  # environment variable: avx512, avx2 or portable instead of the best there is

_List = ctypes.c_void_p  # address of an array of numbers

_C_TYPES: dict[str, Any] = {"double": ctypes.c_double, "std::int64_t": ctypes.c_int64, "std::uint64_t": ctypes.c_uint64}


class Step(ctypes.Structure):
    """Arguments of ``roast_plan`` and ``roast_adamw``: RoastStep in interface.h, field by field."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("numel", _List),
        ("tensors", _List * len(TENSORS)),
        ("positions", _List * len(Position._fields)),
        ("written", _List),
        ("written_count", ctypes.c_int64),
        ("thresholds", _List),
        ("rescaling", ctypes.c_void_p),
        *((name, _C_TYPES[kind]) for name, kind in SCALARS.items()),
        ("param_dtype", ctypes.c_int32),
        ("moment_dtype", ctypes.c_int32),
        ("score_dtype", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


def facts_function(exchange_capsule: object) -> Callable[[list[Any], int, int], int] | None:
    """``roast_facts`` with torch's table of DLPack's functions; None if the library cannot be used."""
    if unavailable() is not None:
        return None
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    table = pointer_of(exchange_capsule, b"dlpack_exchange_api")
    # PyDLL and not CDLL: the interpreter's lock is kept, and its errors are raised.
    function = ctypes.PyDLL(loaded()._name).roast_facts
    function.argtypes = (ctypes.c_void_p, ctypes.py_object, ctypes.c_int64, ctypes.c_void_p)
    function.restype = ctypes.c_int32
    return partial(function, table)


def _fields() -> list[str]:
    """What a step takes, as ``roast_fields`` says it of the library's sources."""
    tensors = [
        f"{name} {field.dtype.value if field.per_element else 'one_float32'} {'written' if field.written else 'read'}"
        for name, field in TENSORS.items()
    ]
    return [*tensors, *Position._fields, *(f"{name} {kind}" for name, kind in SCALARS.items())]


_FUNCTIONS = {
    "roast_plan": (ctypes.POINTER(Step),),
    "roast_adamw": (ctypes.POINTER(Step),),
    "roast_fields": (),
    "roast_accumulate": (ctypes.c_int64, _List, _List, _List, ctypes.c_int32, ctypes.c_int32),
    "roast_histogram": (ctypes.c_int64, _List, _List, ctypes.c_int32, _List, ctypes.c_int32),
    "roast_assign_codes": (ctypes.c_int64, _List, _List, ctypes.c_int32, _List, _List, ctypes.c_int32),
    "roast_use_instruction_set": (ctypes.c_char_p,),
    "roast_instruction_set": (),
}


class LibraryError(Exception):
    """The library cannot be used in this process; the message says why and what to do."""


@cache
def _outcome() -> ctypes.CDLL | LibraryError:
    try:
        return _load()
    except LibraryError as error:
        return error


def loaded() -> ctypes.CDLL:
    """The loaded library; its functions release the global interpreter lock.

    Raises:
        LibraryError: it was not built, cannot be loaded, or was asked for instructions that the processor lacks.
    """
    outcome = _outcome()
    if isinstance(outcome, LibraryError):
        raise outcome
    return outcome


def unavailable(device: torch.device | None = None) -> str | None:
    """Why the library cannot be used, and what to do about it; None when it can. It is the same for every device."""
    outcome = _outcome()
    return str(outcome) if isinstance(outcome, LibraryError) else None


def _load() -> ctypes.CDLL:
    folder = Path(__file__).parent
    rebuild = (
        "reinstall roast-optim where a C++17 compiler (g++ or clang++) is installed; pip install -v shows its errors"
    )
    files = sorted(folder.glob("_native*.so"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise LibraryError(f"it was not built ({folder} holds no _native*.so): {rebuild}")
    try:
        if missing := missing_bytes(files[-1]):
            raise OSError(f"the file was cut off, {missing:,} bytes are missing")
        library = ctypes.CDLL(str(files[-1]))
        interface = library.roast_interface()
    except (OSError, AttributeError) as error:
        raise LibraryError(f"{files[-1]} cannot be loaded ({error}): {rebuild}") from error
    if interface != _INTERFACE:
        raise LibraryError(f"{files[-1]} was built from another version of the sources: {rebuild}")
    for name, argument_types in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = argument_types, ctypes.c_char_p
    if (difference := _first_difference(library.roast_fields().decode().splitlines(), _fields())) is not None:
        raise LibraryError(f"{files[-1]} was built from another version of the sources ({difference}): {rebuild}")
    name = os.environ.get(_INSTRUCTION_SET, "")
    message = library.roast_use_instruction_set(name.encode())
    if message is not None:
        raise LibraryError(f"{_INSTRUCTION_SET}={name!r}: {message.decode()}; unset {_INSTRUCTION_SET}")
    library.roast_use_team.argtypes, library.roast_use_team.restype = (ctypes.c_void_p,), None
    library.roast_use_team(_run_team())
    return library


def _first_difference(built: list[str], here: list[str]) -> str | None:
    """Which field of a step the library has otherwise than these sources; None: none."""
    for number, (theirs, ours) in enumerate(zip_longest(built, here, fillvalue="nothing"), 1):
        if theirs != ours:
            return f"field {number} of a step is {theirs!r} there and {ours!r} here"
    return None


def _run_team() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime of this process's torch, whose threads are thus shared.

    In the dynamic linker's own order: first what is loaded for the whole process (a preloaded runtime), then what torch
    depends on.
    """
    torch_libraries = (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")
    for file in (None, *map(str, torch_libraries)):
        try:
            return ctypes.cast(ctypes.CDLL(file).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    warnings.warn(
        "the native backend of RoastAdamW found no OpenMP runtime in torch and runs in one thread",
        UserWarning,
        stacklevel=2,
    )
    return None


def use_instruction_set(name: str) -> None:
    """Use the kernels of "avx512", "avx2" or "portable" from now on; "": the best that this processor has.

    Raises:
        ValueError: an unknown name, or instructions that this processor lacks.
    """
    message = loaded().roast_use_instruction_set(name.encode())
    if message is not None:
        raise ValueError(f"instruction set {name!r}: {message.decode()}")


def instruction_set() -> str:
    """The instruction set in use: "avx512", "avx2" or "portable"."""
    name: bytes = loaded().roast_instruction_set()
    return name.decode()
