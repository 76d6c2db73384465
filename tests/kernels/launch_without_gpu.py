"""Call every function of the Triton backend as on a GPU, but stop each launch after its kernel is compiled.

    python -m tests.kernels.launch_without_gpu sm_90

This finds arguments that a launch passes and the compiler does not take, which the interpreter does not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from benchmarks.kernels.compiled_kernels import TARGETS
from roast_optim.kernels import triton as backend
from roast_optim.kernels.step import HISTOGRAM_BINS, Position, Selection
from roast_optim.kernels.triton import launch, pointer_table
from tests.support.steps import OF_SELECTION, OPTIONAL, random_step

TABLES = torch.full((256,), 2**31), torch.full((256,), 2.0)
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class NoGpu:
    """A driver for a target that is not there."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        """What to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """The first."""
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        """The default."""
        return 0


def step(
    dtype: torch.dtype = torch.float32,
    state_dtype: torch.dtype = torch.float32,
    *,
    more: Sequence[str] = (),
    **changes: Any,
) -> None:
    """A step over two parameters, one of them unaligned; ``more`` tensors than those of selection."""
    options: dict[str, Any] = {"selection": Selection(2**64 - 1, *TABLES, None), **changes}
    random_step(
        [(5001,), (3,)],
        dtype=dtype,
        moment_dtype=state_dtype,
        positions=[Position(0, 0, 5001, 0), Position(1, 7, 2, 9)],
        optional=(*OF_SELECTION, *more),
        **options,
    ).run(backend)


def main(target: str) -> None:
    """Launch everything."""
    gpu = TARGETS[target]
    driver.set_active(NoGpu(gpu))
    run, launched = JITFunction.run, set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        launched.add(self.fn.__name__)
        return run(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = compile_only
    pointer_table.block_size = lambda device: launch.ELEMENTS_PER_THREAD * gpu.warp_size * launch.WARPS

    for dtype in FLOAT_DTYPES:
        step(dtype, dtype)
    step(lr=torch.tensor(1e-3), capturable=True)
    step(lr=torch.tensor(1e-3, dtype=torch.float64), beta1=torch.tensor(0.9), beta2=0.0, weight_decay=0, eps=1)
    step(selection=None, more=OPTIONAL, maximize=True)
    for by, acts_on in (("uniform", "gradient"), ("rank", "update")):
        chosen = Selection(7, *TABLES, None, acts_on)
        step(pretrained_decay=0.1, pretrained_decay_by=by, selection=chosen)
    for draw_number in (0, 1, 16, 2**31):
        step(accumulate=False, selection=Selection(draw_number, *TABLES, draw_number))
    for dtype in FLOAT_DTYPES:
        backend.accumulate_importance_([torch.zeros(100)], [torch.zeros(100, dtype=dtype)])
    scores = [torch.zeros(100), torch.zeros(101)[1:]]
    backend.histogram_(scores, torch.zeros(HISTOGRAM_BINS, dtype=torch.int64))
    codes = [torch.zeros(100, dtype=torch.uint8) for _ in scores]
    backend.assign_rank_codes_(scores, codes, torch.zeros(HISTOGRAM_BINS, dtype=torch.uint8))
    for shape in ((1, 1, 1), (2, 16, 768), (2, 3, 100), (1, 1, 16_384)):
        for norm in ("linf", "sign", "l2"):
            embedding, tokens = torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool)
            backend.perturbed_embedding(embedding, embedding, 0.1, norm, tokens=None if norm == "l2" else tokens)
    for rows, classes in ((4, 1), (4, 2), (16, 3), (3, 50_257), (1, 131_072), (1, 262_144)):
        p, q = (torch.zeros(rows, classes, requires_grad=True) for _ in range(2))
        for other, counted in ((q, None), (q.detach(), torch.ones(rows, dtype=torch.bool))):
            backend.symmetric_kl_rows(p, other, counted).sum().backward()
    kernels = {"roast_adamw_kernel", "_accumulate_kernel", "_histogram_kernel", "_rank_codes_kernel"}
    assert launched == kernels | {"_peaks_kernel", "_perturb_kernel", "_forward_kernel", "_backward_kernel"}, launched


if __name__ == "__main__":
    main(sys.argv[1])
