"""An interrupted write leaves the old file or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import pytest

from roast_optim.evaluation.files import atomic_write, write_json


def interrupted(file: BinaryIO, error: type[BaseException]) -> None:
    file.write(b"half of the n")
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as file:
        interrupted(file, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "results.json"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_replaces_the_old_one(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "results.json", {"old": 1})
    write_json(tmp_path / "a" / "results.json", {"new": 2})
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == {"new": 2}


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "results.json", float("nan"))
    assert list(tmp_path.iterdir()) == []
