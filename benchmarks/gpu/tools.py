"""NVIDIA's tools: where they are, and why one cannot be used."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path

from .runner import ROOT

# Where they are installed if they are not on the path.
FOLDERS = ("/usr/local/cuda*/bin", "/opt/nvidia/nsight-compute/*")


def find(name: str) -> str | None:
    """The path of a tool; None if it is nowhere that it is usually installed."""
    if found := shutil.which(name):
        return found
    for pattern in FOLDERS:
        for folder in sorted(glob(pattern), reverse=True):  # the newest version first
            if (Path(folder) / name).is_file():
                return str(Path(folder) / name)
    return None


def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit status, output and error output of a tool on one of this project's programs."""
    done = subprocess.run(
        command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, errors="replace", check=False
    )
    return done.returncode, done.stdout, done.stderr


def last_lines(text: str, count: int = 6) -> str:
    """What a tool said at its end."""
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-count:])
