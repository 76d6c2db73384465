"""Is this version as fast as an earlier one? ``python -m benchmarks.kernels.earlier PYTHON [--case CASE ...]``

PYTHON is the interpreter of an environment into which the earlier version is installed. Each version works in a process
of its own, and the two take turns: A B, B A, ... Printed is the median of the ratios of neighbours, this version's time
over the earlier one's, with quartiles.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .pairs import against
from .workloads import WORKLOADS

AT_WORK = Path(__file__).with_name("any_version.py")


DTYPES = ("float32", "bfloat16")


def _case(what: str, workload: str = "", dtype: str = "", gradient: str = "") -> dict[str, Any]:
    """What :func:`.any_version.work` takes."""
    return {"what": what, "shapes": WORKLOADS.get(workload, []), "dtype": dtype, "gradient": gradient}


TINY_TENSORS = "1,000 tiny tensors"
CASES: Mapping[str, dict[str, Any]] = {
    **{
        f"{what} {size} {dtype}": _case(what, size, dtype)
        for what in ("step", "refresh")
        for size in WORKLOADS
        for dtype in DTYPES
        if size != TINY_TENSORS
    },
    f"step {TINY_TENSORS} float32": _case("step", TINY_TENSORS, "float32"),
    **{f"adversary {gradient}": _case("adversary", gradient=gradient) for gradient in ("exact", "fast")},
}


class Version:
    """One version of the package, waiting in its process for its turn."""

    def __init__(self, python: str, case: str) -> None:
        # By its path and from another folder, or it would import the package of the folder that it is started in.
        self._command = f"{python} {AT_WORK} {case!r}"
        task = json.dumps(CASES.get(case))  # none for a name that is no case: the process says so and ends
        self._process = subprocess.Popen(
            [python, str(AT_WORK), task], cwd=AT_WORK.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer("ready")

    def seconds(self) -> float:
        """Of one run."""
        self._pipe(self._process.stdin).write("run\n")
        self._pipe(self._process.stdin).flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._pipe(self._process.stdin).close()
        self._process.wait()

    def _answer(self, expected: str | None = None) -> str:
        line = self._pipe(self._process.stdout).readline().strip()
        if not line or (expected and line != expected):
            raise SystemExit(f"{self._command}: no answer; its own message stands above")
        return line

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def compared(case: str, earlier: str, processes: int, rounds: int) -> dict[str, float]:
    """Median and quartiles of this version's time over the earlier one's, turn by turn.

    What a process finds in memory (huge pages, say) stays with it, and whoever goes second finds a warmer machine. So
    the processes are started anew several times, and who starts and who goes first changes each time.
    """
    own: list[float] = []
    others: list[float] = []
    for process in range(processes):
        order = [(sys.executable, own), (earlier, others)][:: -1 if process % 2 else 1]
        versions = [(Version(python, case), times) for python, times in order]
        for number in range(rounds):
            for version, times in versions[:: -1 if number % 2 else 1]:
                times.append(version.seconds())
        for version, _ in versions:
            version.close()
    return against(own, others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="interpreter of the environment of the earlier version")
    parser.add_argument("--case", action="append", choices=list(CASES), help="one of them; all without this option")
    parser.add_argument("--processes", type=int, default=6, help="pairs of processes")
    parser.add_argument("--rounds", type=int, default=11, help="turns of each pair")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    figures = {}
    print("| case | this version / the earlier one | quartiles |\n|---|---|---|")
    for case in arguments.case or CASES:
        figures[case] = ratio = compared(case, arguments.python, arguments.processes, arguments.rounds)
        print(f"| {case} | {ratio['ratio']:.3f} | {ratio['lower_quartile']:.3f} to {ratio['upper_quartile']:.3f} |")
        sys.stdout.flush()
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
