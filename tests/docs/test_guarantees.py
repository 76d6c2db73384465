"""Every test that the documentation names is there under that name."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Named(NamedTuple):
    """A file under tests/, and the start of the name of a test in it, as words; empty: all of the file."""

    page: str
    file: str
    start: str

    def fits(self, test: str) -> bool:
        """Whether that is the name of a test which is meant."""
        return test.startswith("test_" + re.sub(r"\W+", "_", self.start.lower()))


def named_tests() -> Iterator[Named]:
    """Those of all pages. Of one file several can be named, with semicolons; what is in brackets is a remark."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        for file, after in re.findall(r"`((?:\w+/)+test_\w+\.py)`([^`|]*)", page.read_text()):
            starts = re.sub(r"\(.*", "", after) if after.startswith(" ") else ""  # else the sentence goes on
            for start in [each.strip(" .\n") for each in starts.split(";")]:
                yield Named(page.name, file, start)


NAMED = list(dict.fromkeys(named_tests()))


def names_of_tests(file: str) -> list[str]:
    """Names of the test functions that stand in a file."""
    body = ast.parse((ROOT / "tests" / file).read_text()).body
    return [each.name for each in body if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")]


def test_the_page_of_promises_names_tests() -> None:
    assert sum(each.page == "guarantees.md" and each.start != "" for each in NAMED) > 20


@pytest.mark.parametrize("named", NAMED, ids=lambda named: f"{named.page}: {named.file} {named.start}".strip())
def test_a_test_that_a_page_names_stands_in_its_file(named: Named) -> None:
    assert (ROOT / "tests" / named.file).is_file(), f"{named.page} names a file that is not there"
    found = names_of_tests(named.file)
    assert any(map(named.fits, found)), f"{named.page}: no test begins with {named.start!r}, only {found}"


@pytest.mark.slow
def test_every_test_that_a_page_names_is_collected() -> None:
    files = sorted({f"tests/{named.file}" for named in NAMED})
    every = ["-m", "slow or distributed or not slow", "--collect-only", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *every, *files],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    collected = set(re.findall(r"^tests/(.+\.py)::(\w+)", result.stdout, re.MULTILINE))
    missing = [named for named in NAMED if not any(f == named.file and named.fits(test) for f, test in collected)]
    assert missing == []
