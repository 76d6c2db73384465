"""Peak memory beyond what lies there already; as a program: of one call of an optimizer, in a process of its own.

python -m benchmarks.kernels.memory refresh native 110M
"""

from __future__ import annotations

import argparse
import ctypes
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from roast_optim.kernels.backend import BACKEND_NAMES

from .contestants import ranked_optimizer
from .workloads import TINY_WORKLOADS, WORKLOADS, workloads

ROOT = Path(__file__).parents[2]
CALLS = ("refresh", "step")


def peak_extra_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that the process, or the GPU, holds at most during ``run`` beyond what it holds at its beginning.

    On the CPU it is the resident set, which Linux counts to within a few hundred kilobytes. Memory that was freed and
    not given back to the system hides what ``run`` takes: measure in a fresh process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (proc(5))
    before = resident_bytes("VmRSS")
    run()
    return resident_bytes("VmHWM") - before


def unavailable(device: torch.device) -> str | None:
    """Why memory cannot be measured here."""
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        return "peak memory is read from /proc of Linux"
    return None


def resident_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, f"/proc/self/status has no {field}"
    return 1024 * int(found[1])


def of_call(call: str, backend: str, workload: str, device: torch.device, tiny: bool = False) -> int:
    """Bytes that one call of an optimizer takes beyond parameters, gradients and state.

    Args:
        call: "step" or "refresh".
        backend: of the optimizer.
        workload: name of the shapes.
        device: of the parameters.
        tiny: for trying out.
    """
    # Code of torch is loaded when it is first used, which is not what is to be measured: use it on next to nothing.
    for name in ("reference", backend):
        small = ranked_optimizer(name, TINY_WORKLOADS[workload], device)
        small.step()
        small.refresh()
    optimizer = ranked_optimizer(backend, workloads(tiny)[workload], device)
    optimizer.step()
    return peak_extra_memory(getattr(optimizer, call), device)


def of_call_in_fresh_process(call: str, backend: str, workload: str, device: torch.device) -> int:
    """:func:`of_call`, in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, call, backend, workload, "--device", device.type]
    return int(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the bytes that one call takes beyond parameters, gradients and state."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.memory", description=main.__doc__)
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("backend", choices=BACKEND_NAMES)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args(arguments)
    print(of_call(options.call, options.backend, options.workload, options.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
