"""Interpreters that have the package's requirements but not the package, and programs that are run by them."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def make_environment(folder: Path) -> Path:
    """The interpreter of a new environment without pip, which sees installed packages but no editable one."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]))
    return folder / "bin" / "python"


def copy_source_tree(folder: Path) -> None:
    """The files under version control and those to come, without anything that was built or measured."""
    listed = subprocess.run(
        ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in map(Path, listed.stdout.decode().split("\0")[:-1]):
        if "results" not in name.parts and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def output_of(command: list[str | Path], folder: Path, **variables: str) -> str:
    """What a program prints that is run in ``folder``, in one thread, without PYTHONPATH unless ``variables`` has one.

    Raises:
        AssertionError: it failed; the message is what it said.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command} in {folder}:\n{done.stdout}{done.stderr}"
    return done.stdout.strip()
