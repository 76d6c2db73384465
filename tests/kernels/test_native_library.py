"""The shared library: why it cannot be used, its instruction sets, its threads, and a fork."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from roast_optim.kernels import native
from roast_optim.kernels.native import library
from tests.support.instruction_sets import INSTRUCTION_SETS, using
from tests.support.steps import Step, random_step, selection


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the library is looked for."""
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    return tmp_path


def test_a_library_that_was_not_built_says_how_to_build_it(folder: Path) -> None:
    with pytest.raises(library.LibraryError, match=r"was not built.*reinstall roast-optim where a C\+\+17 compiler"):
        library._load()


def test_a_file_that_is_no_library_says_what_is_wrong_with_it(folder: Path) -> None:
    (folder / "_native.so").write_bytes(b"not a library")
    with pytest.raises(library.LibraryError, match=r"_native.so cannot be loaded \(.*reinstall"):
        library._load()


def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_INTERFACE", -1)
    with pytest.raises(library.LibraryError, match="built from another version of the sources: reinstall"):
        library._load()


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (
            lambda fields: ["parameter parameter written", *fields[1:]],
            "field 1 of a step is 'param parameter written' ",
        ),
        (
            lambda fields: [*fields[:4], fields[4] + "s", *fields[5:]],
            r"field 5 .*exp_avg_sq.* there and .*writtens' here",
        ),
        (lambda fields: fields[:-1], r"is '\w+ std::int64_t' there and 'nothing' here"),
        (lambda fields: [*fields, "decay double"], r"is 'nothing' there and 'decay double' here"),
    ],
)
def test_a_library_whose_step_has_other_fields_names_the_first(
    here: Callable[[list[str]], list[str]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = library._fields()
    monkeypatch.setattr(library, "_fields", lambda: here(fields))
    with pytest.raises(
        library.LibraryError, match=rf"built from another version of the sources \(.*{message}.*reinstall"
    ):
        library._load()


def test_the_reason_is_what_unavailable_returns(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    library._outcome.cache_clear()
    try:
        reason = native.unavailable()
        assert reason is not None
        assert "was not built" in reason
        with pytest.raises(library.LibraryError, match="was not built"):
            library.loaded()
    finally:
        library._outcome.cache_clear()


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_the_environment_chooses_the_instruction_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with using(name):
        monkeypatch.setenv("ROAST_NATIVE_ISA", name)
        native.use_instruction_set("")
        library._load()
        assert native.instruction_set() == name


def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"instruction set 'sse9': there is no such instruction set"):
        native.use_instruction_set("sse9")
    monkeypatch.setenv("ROAST_NATIVE_ISA", "sse9")
    with pytest.raises(library.LibraryError, match=r"ROAST_NATIVE_ISA='sse9'.*unset ROAST_NATIVE_ISA"):
        library._load()


def test_the_best_instruction_set_is_taken_by_default() -> None:
    with using(INSTRUCTION_SETS[-1]):
        native.use_instruction_set("")
        assert native.instruction_set() == INSTRUCTION_SETS[0]


def test_threads_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One OpenMP runtime: the library has none of its own, and enters that of torch."""
    assert (library._run_team() is not None) == torch.backends.openmp.is_available()
    (file,) = Path(library.__file__).parent.glob("_native*.so")
    assert not any(runtime in file.read_bytes() for runtime in (b"libgomp", b"libomp", b"libiomp"))
    with using(native.instruction_set(), threads=3):
        assert library.threads() == 3


def test_without_an_openmp_runtime_one_thread_does_the_work_and_says_so() -> None:
    code = (
        "import ctypes, warnings; from roast_optim.kernels.native import library\n"
        "library.ctypes.cast = lambda *args: (_ for _ in ()).throw(AttributeError)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always'); library.loaded()\n"
        "assert 'runs in one thread' in str(caught[-1].message)\n"
        "from roast_optim.kernels import native; from tests.support.steps import random_step\n"
        "random_step([(100_000,)]).run(native); print('stepped')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "stepped", result.stderr


def test_a_forked_process_takes_its_steps_in_one_thread() -> None:
    """A DataLoader's worker inherits an OpenMP runtime whose threads are gone; a parallel region would hang."""
    arguments = random_step([(200_000,)], selection=selection())
    expected = arguments.copy()
    with using(native.instruction_set(), threads=2):
        expected.run(native)
        context = multiprocessing.get_context("fork")
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_step_and_send, args=(arguments, send.send))
        process.start()
        arrived = receive.poll(60)
        process.kill()
        process.join()
    assert arrived
    assert receive.recv() == (1, sum_of_bits(expected))


def _step_and_send(arguments: Step, send: Callable[[tuple[int, float]], None]) -> None:
    threads = library.threads()
    arguments.run(native)
    torch.set_num_threads(1)  # as DataLoader does in its workers, for torch's own operations
    send((threads, sum_of_bits(arguments)))


def sum_of_bits(arguments: Step) -> int:
    return int(arguments.rows[0].param.view(torch.int32).sum())
