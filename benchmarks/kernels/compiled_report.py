"""What the compiler makes of the Triton kernels, set against the limits of the GPUs they are made for.

    python -m benchmarks.kernels.compiled_report

compiles every kernel for every target, which needs no GPU, and writes ``results/compiled.json`` and
``results/compiled.md``. Nothing in it is measured: a roofline says how fast a kernel could be at best, and what would
hold it back. Data flows one way: compiled_kernels -> disassembly -> this report.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .compiled_kernels import KERNELS, STEP, TARGETS, Kernel
from .disassembly import accesses

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Gpu:
    """Limits of a GPU, from public data sheets.

    Attributes:
        bandwidth: of device memory, bytes per second.
        issue_rate: instructions times lanes per second: multiprocessors x lanes per cycle x clock.
    """

    name: str
    bandwidth: float
    issue_rate: float
    source: str


# Each NVIDIA multiprocessor issues four warps' instructions per cycle, 128 lanes; a compute unit of CDNA 3 has four
# vector units of 16 lanes. Where a data sheet gives no clock, it follows from the peak float32 rate: two operations per
# lane and cycle.
GPUS = {
    "sm_80": Gpu(
        "A100 SXM4 80 GB",
        2.039e12,
        108 * 128 * 1.41e9,
        "NVIDIA A100 data sheet (2,039 GB/s) and Ampere architecture white paper (108 SMs, 1,410 MHz)",
    ),
    "sm_90": Gpu(
        "H100 SXM5",
        3.35e12,
        67e12 / 2,
        "NVIDIA H100 data sheet (3.35 TB/s, 67 TFLOPS float32) and Hopper architecture white paper (128 lanes per SM)",
    ),
    "sm_100": Gpu(
        "B200",
        8e12,
        75e12 / 2,
        "NVIDIA DGX B200 (64 TB/s in eight GPUs) and HGX B200 (75 TFLOPS float32) data sheets",
    ),
    "gfx942": Gpu(
        "MI300X",
        5.3e12,
        304 * 64 * 2.1e9,
        "AMD Instinct MI300X data sheet (5.3 TB/s, 304 compute units, 2,100 MHz) and CDNA 3 white paper",
    ),
}

# What the fused step must and should keep to, float32, full blocks, sm_90.
LIMITS = {"registers": (40, 32), "instructions_per_element": (76, 64), "bytes_per_element": (37, 37), "spills": (0, 0)}


def figures(kernel: Kernel, target: str) -> dict[str, Any]:
    """Everything the report says of one kernel on one target."""
    listing, gpu = kernel.listing(target), GPUS[target]
    loop = listing.main_loop()
    inside, outside = kernel.instructions_per_element(listing, target)
    memory_seconds = kernel.bytes_per_element / gpu.bandwidth
    issue_seconds = (inside + outside) / gpu.issue_rate
    return {
        "kernel": kernel.name,
        "target": target,
        "registers": listing.registers,
        "spills": listing.spills,
        "shared_bytes": listing.shared_bytes,
        "instructions_per_element": round(inside + outside, 1),
        "instructions_per_element_in_loop": round(inside, 1),
        "accesses_in_loop": {
            kind: {str(8 * width): count for width, count in sorted(accesses(loop, kind).items(), reverse=True)}
            for kind in ("load", "store", "atomic")
        },
        "bytes_per_element": kernel.bytes_per_element,
        "elements_per_second_by_memory": round(1 / memory_seconds),
        "elements_per_second_by_issue": round(1 / issue_seconds),
        "issue_share": round(issue_seconds / memory_seconds, 3),
    }


def report(rows: list[dict[str, Any]]) -> str:
    """The Markdown text."""
    step = next(row for row in rows if row["kernel"] == STEP.name and row["target"] == "sm_90")
    lines = [
        "# Triton kernels, compiled ahead of time",
        "",
        f"Made by `python -m benchmarks.kernels.compiled_report` with triton {version('triton')}. No GPU was used and",
        "nothing was timed: these are figures of the machine code.",
        "",
        "## The fused step against its limits",
        "",
        f"{STEP.name}, full blocks of aligned tensors, sm_90.",
        "",
        "| | compiled | at most | aim |",
        "|---|---|---|---|",
        *(f"| {what.replace('_', ' ')} | {step[what]} | {most} | {aim} |" for what, (most, aim) in LIMITS.items()),
        "",
        f"A thread handles four elements at a time. Its accesses: {_widths(step)}. The 128-bit loads fetch the five "
        "tensors, the 32-bit load the four rank codes. The 64-bit loads are for the L1 cache: per element, threshold "
        "and rescaling factor in one; and addresses of tensors, the same for all threads.",
        "",
        "## All kernels",
        "",
        "Instructions are those of the main loop, every branch counted as taken, and of the shortest way around it. "
        '"Issue" is the time it takes to issue them over the time it takes to move the bytes: below 100% memory is '
        "the narrower limit.",
        "",
    ]
    for target, gpu in GPUS.items():
        lines += [
            f"### {target}: {gpu.name}",
            "",
            f"{gpu.bandwidth / 1e12:.3g} TB/s, {gpu.issue_rate / 1e12:.3g} x 10^12 instructions x lanes per second. "
            f"Source: {gpu.source}.",
            "",
            "| kernel | registers | spills | shared bytes | instructions per element "
            "| accesses in the main loop, bits | bytes per element | 10^9 elements/s, memory | issue |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['kernel']} | {row['registers']} | {row['spills']} | {row['shared_bytes']} "
            f"| {row['instructions_per_element']} | {_widths(row)} | {row['bytes_per_element']} "
            f"| {row['elements_per_second_by_memory'] / 1e9:.1f} | {row['issue_share']:.0%} |"
            for row in rows
            if row["target"] == target
        ]
        lines.append("")
    return "\n".join(lines)


def _widths(row: dict[str, Any]) -> str:
    """For instance: 5 x 128, 1 x 32 load; 4 x 128 store."""
    kinds = {
        kind: ", ".join(f"{count} x {bits}" for bits, count in widths.items())
        for kind, widths in row["accesses_in_loop"].items()
    }
    return "; ".join(f"{widths} {kind}" for kind, widths in kinds.items() if widths)


def main() -> None:
    """Compile, disassemble, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of compiled.json and compiled.md")
    parser.add_argument("--kernel", choices=[kernel.name for kernel in KERNELS], help="only this one, and no Markdown")
    arguments = parser.parse_args()
    output: Path = arguments.output
    kernels = [kernel for kernel in KERNELS if arguments.kernel in (None, kernel.name)]
    rows = [figures(kernel, target) for kernel in kernels for target in TARGETS]
    output.mkdir(parents=True, exist_ok=True)
    document = {"triton": version("triton"), "gpus": {name: vars(gpu) for name, gpu in GPUS.items()}, "kernels": rows}
    (output / "compiled.json").write_text(json.dumps(document, indent=1) + "\n")
    if arguments.kernel is None:
        (output / "compiled.md").write_text(report(rows))


if __name__ == "__main__":
    main()
