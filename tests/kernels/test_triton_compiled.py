"""The Triton kernels compiled ahead of time, which needs no GPU: they compile, and keep to their limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    version("triton").startswith("3.3."), reason="triton 3.3 compiles for AMD's GPUs only where ROCm is installed"
)
Rows = list[dict[str, Any]]


def run(arguments: list[str], cache: Path) -> None:
    """In a process of its own, as the interpreter may be chosen in this one, and into an empty cache."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def report(folder: Path, *arguments: str) -> Rows:
    run(["-m", "benchmarks.kernels.compiled_report", f"--output={folder}", *arguments], folder / "cache")
    rows: Rows = json.loads((folder / "compiled.json").read_text())["kernels"]
    return rows


def test_the_fused_step_keeps_to_its_limits_on_every_target(tmp_path: Path) -> None:
    rows = {row["target"]: row for row in report(tmp_path, "--kernel=step, float32")}
    assert rows.keys() == {"sm_80", "sm_90", "sm_100", "gfx942"}
    for target, row in rows.items():
        assert row["spills"] == 0
        assert row["shared_bytes"] == 0
        loads, stores = row["accesses_in_loop"]["load"], row["accesses_in_loop"]["store"]
        assert stores == {"128": 4}, "all four stores of a full block are 128 bits wide"
        # Four rank codes in one access; what is 64 bits wide is looked up in the L1 cache. AMD fetches two addresses
        # of tensors in one 128-bit access besides.
        assert loads["32"] == 1
        assert loads.keys() == {"128", "64", "32"}
        assert loads["128"] == (6 if target == "gfx942" else 5)
        assert (5 * 16 + 4 + 4 * 16) / 4 == row["bytes_per_element"] == 37
    for target in ("sm_80", "sm_90", "sm_100"):
        assert rows[target]["registers"] <= 40
        assert rows[target]["instructions_per_element"] <= 76


# Where issuing a step's instructions takes longer than moving its bytes, by kernel and target, and how much longer at
# most. With everything in bfloat16 a step moves 19 bytes per element, not 37, and stochastic rounding draws a second
# time: 98 instructions per element. Only on the B200, whose memory is twice as fast as others', is that too many.
BOUND_BY_INSTRUCTIONS = {("step, bfloat16, stochastic rounding, importance bfloat16", "sm_100"): 1.11}


@pytest.mark.slow
def test_every_kernel_compiles_for_every_target_without_spills(tmp_path: Path) -> None:
    rows = report(tmp_path)
    assert len(rows) % 4 == 0
    assert [(row["kernel"], row["target"], row["spills"]) for row in rows if row["spills"] != 0] == []
    shares = {(row["kernel"], row["target"]): row["issue_share"] for row in rows if row["kernel"].startswith("step")}
    assert BOUND_BY_INSTRUCTIONS.keys() <= shares.keys()
    slower = {which: share for which, share in shares.items() if share >= BOUND_BY_INSTRUCTIONS.get(which, 1)}
    assert slower == {}, "steps whose instructions take longer than their memory traffic"
    markdown = (tmp_path / "compiled.md").read_text()
    assert all(f"| {row['kernel']} |" in markdown for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_what_the_functions_launch_compiles(target: str, tmp_path: Path) -> None:
    run(["-m", "tests.kernels.launch_without_gpu", target], tmp_path)
