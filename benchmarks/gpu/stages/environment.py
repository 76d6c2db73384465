"""What everything else depends on: versions, the card, its clocks as they are, the rate of a copy."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.kernels.pairs import Contestant

from ..report import Report, run_stage
from ..timing import figures, in_turn

PACKAGES = ("torch", "triton", "numpy", "transformers", "pytest", "pytest-xdist", "hypothesis")
COPIED = 1 << 31  # bytes, which are read and written
QUERY = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


def environment(report: Report) -> None:
    """Reads settings, changes none."""
    report.measured("versions", python=platform.python_version(), **{name: _version(name) for name in PACKAGES})
    compiler = next((name for name in ("gcc", "clang", "cc") if shutil.which(name)), None)
    if compiler is None:
        report.absent("C compiler", "none of gcc, clang and cc is found; triton needs one for its launchers")
    else:
        report.measured("C compiler", name=compiler)
    with report.going_on("card"):
        card(report)
    copy_rate(report)
    clocks(report)  # after some work, which takes the card out of its sleep


def card(report: Report) -> None:
    """Name and sizes."""
    if report.dry_run:
        report.absent("card", "a dry run")
        return
    properties = torch.cuda.get_device_properties(report.device)
    report.measured(
        "card",
        name=properties.name,
        memory_GiB=properties.total_memory / 2**30,
        multiprocessors=properties.multi_processor_count,
        cache_MiB=getattr(properties, "L2_cache_size", 0) / 2**20,
        capability=f"{properties.major}.{properties.minor}",
        cuda=str(torch.version.cuda or torch.version.hip),
    )


def clocks(report: Report) -> None:
    """As nvidia-smi tells them."""
    if shutil.which("nvidia-smi") is None:
        report.absent("clocks", "nvidia-smi is not found")
        return
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    values = done.stdout.strip().splitlines()[0].split(", ") if done.stdout.strip() else []
    names = [name.replace(".", "_") for name in QUERY.split(",")]
    if done.returncode != 0 or len(values) != len(names):
        report.absent("clocks", f"nvidia-smi answered {(done.stdout + done.stderr).strip()[:200]!r}")
        return
    report.measured("clocks", **dict(zip(names, values, strict=True)))


def copy_rate(report: Report) -> None:
    """The yardstick: bytes read plus bytes written per second."""
    source = torch.ones((1 << 16) if report.dry_run else COPIED, dtype=torch.uint8, device=report.device)
    target = torch.zeros_like(source)
    copy = Contestant("copy", lambda: target.copy_(source), bytes_moved=2 * source.nbytes)
    report.measured("copy", **figures(copy, in_turn([copy], report)))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    run_stage(environment)
