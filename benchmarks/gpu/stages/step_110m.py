"""One step of 110M parameters: RoAST beside torch's AdamW, in float32 and in bfloat16."""

from __future__ import annotations

from ..report import Report, run_stage
from ..steps import DTYPES, FOREACH, FUSED, VARIANTS, VARIANTS_OF_16_BITS, compare_steps


def step_110m(report: Report) -> None:
    """Every variant, by itself and against the fused AdamW."""
    for dtype in DTYPES:
        with report.going_on(dtype):
            of_dtype = VARIANTS_OF_16_BITS if dtype == "bfloat16" else {}
            compare_steps(report, "110M", dtype, [*VARIANTS, *of_dtype, FUSED, FOREACH], f"{dtype}: ")


if __name__ == "__main__":
    run_stage(step_110m)
