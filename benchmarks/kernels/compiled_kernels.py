"""The Triton kernels as they are launched, compiled ahead of time for GPUs that need not be there."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from roast_optim.kernels.step import Selection, StepOptions, accesses, names_in_step
from roast_optim.kernels.triton import histogram, importance, perturbation, rank_codes, roast_adamw_kernel, symmetric_kl
from roast_optim.kernels.triton.launch import BLOCKS_PER_PROGRAM, ELEMENTS_PER_THREAD, OPTIONS, WARPS, row_options
from roast_optim.kernels.triton.roast_adamw import dtype_constants, rounding_constants, step_constants

from .disassembly import Listing, amd_listing, nvidia_listing, wide_accesses

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# The argument types of all kernels, by name; all others are float32 numbers. ":16" marks integers that are multiples of
# 16, as pointers are.
_STRIDES = [
    f"{of}{which}_stride" for of in ("", "embedding_", "gradient_", "perturbed_") for which in ("sample", "token")
]
_TYPES = {
    **dict.fromkeys(("rows", "selection_table", "counts", "not_finite"), "*i64"),
    "tensor_of_program": "*i32",
    **dict.fromkeys(("key0", "key1", "draw_number", "rounding_key0", "rounding_key1", "length", "parts"), "i32"),
    **dict.fromkeys(("codes", "tokens", "counted"), "*u8"),
    **dict.fromkeys(("embedding", "gradient", "perturbed", "peaks"), "*fp32"),
    **dict.fromkeys(("logits_p", "logits_q", "divergences", "statistics", "upstream", "grad_p", "grad_q"), "*fp32"),
    **dict.fromkeys((*_STRIDES, "hidden", "p_stride", "q_stride", "classes"), "i32:16"),
}


@dataclass(frozen=True)
class Kernel:
    """One specialization of a kernel.

    Attributes:
        name: what the report calls it.
        function: the jitted function.
        bytes_per_element: that must be moved between device memory and processor.
        vectors: 128-bit accesses per four elements; 0: none.
        constants: arguments that are compiled in.
        types: of arguments for which they are not the usual ones.
        elements: of a row, handled by a program; None: the kernel reads a pointer table.
    """

    name: str
    function: Any
    bytes_per_element: float
    vectors: int
    constants: Mapping[str, Any]
    types: Mapping[str, str] = field(default_factory=dict)
    elements: int | None = None

    def listing(self, target_name: str) -> Listing:
        """Compile for a target and disassemble."""
        target = TARGETS[target_name]
        compiled = triton.compile(
            self._source(target.warp_size), target=target, options=self._options(target.warp_size)
        )
        if target.backend == "cuda":
            tools = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"
            return nvidia_listing(compiled.asm["cubin"], tools, compiled.metadata.shared)
        return amd_listing(compiled.asm["amdgcn"])

    def instructions_per_element(self, listing: Listing, target_name: str) -> tuple[float, float]:
        """In the main loop, and around it."""
        lanes = TARGETS[target_name].warp_size
        loop = listing.main_loop()
        unrolled = max(1, wide_accesses(loop) // self.vectors) if self.vectors else 1
        elements = self.elements or ELEMENTS_PER_THREAD * lanes * WARPS * BLOCKS_PER_PROGRAM
        threads = lanes * self._options(lanes)["num_warps"]
        return len(loop) / (4 * unrolled), listing.outside_main_loop() * threads / elements

    def _options(self, lanes: int) -> dict[str, int | bool]:
        return OPTIONS if self.elements is None else row_options(self.constants["BLOCK"], lanes)

    def _source(self, lanes: int) -> ASTSource:
        block = ELEMENTS_PER_THREAD * lanes * WARPS
        known = {"BLOCK": block, "CHUNK": block * BLOCKS_PER_PROGRAM, **self.constants}
        names = self.function.arg_names
        types = {name: {**_TYPES, **self.types}.get(name, "fp32") for name in names if name not in known}
        return ASTSource(
            fn=self.function,
            signature={name: types[name].split(":")[0] if name in types else "constexpr" for name in names},
            constexprs={name: known[name] for name in names if name in known},
            attrs={
                (names.index(name),): [["tt.divisibility", 16]]
                for name, kind in types.items()
                if kind.startswith("*") or kind.endswith(":16")
            },
        )


_TABLE = torch.zeros(256)
_SELECTION = Selection(0, _TABLE, _TABLE, None)
_OPTIONS = StepOptions(
    lr=0.0, beta1=0.0, beta2=0.0, eps=0.0, weight_decay=0.0, maximize=False, capturable=False, accumulate=True,
    selection=_SELECTION,
)  # fmt: skip


def _step(
    name: str,
    *,
    param: torch.dtype = torch.float32,
    moments: torch.dtype = torch.float32,
    scores: torch.dtype = torch.float32,
    group: Mapping[str, Any] | None = None,
    types: Mapping[str, str] | None = None,
    constants: Mapping[str, Any] | None = None,
    **options: Any,
) -> Kernel:
    """A step of a selective group, whose memory traffic follows from the tensors that it uses."""
    chosen = replace(_OPTIONS, **options)
    used = names_in_step({"selective": True, **(group or {})}, chosen)
    compiled = {
        "COLUMNS": 2 + len(roast_adamw_kernel.COLUMNS),
        **dtype_constants(param, param, moments, scores),
        **step_constants(chosen, used),
        **rounding_constants(chosen, param, moments, scores),
        **({"selection_table": None} if chosen.selection is None else {}),
        "ALIGNED": True,
        "RUN": True,
        "LR_ON_DEVICE": False,
        "FACTOR_ON_DEVICE": False,
        **(constants or {}),
    }
    moved = accesses(used, param, moments, scores)
    vectors = moved.count(4) if compiled["ALIGNED"] else 0  # four elements of four bytes make 128 bits
    return Kernel(name, roast_adamw_kernel.roast_adamw_kernel, sum(moved), vectors, compiled, types or {})


def _pass(name: str, function: Any, bytes_per_element: float, vectors: int, columns: int, **constants: Any) -> Kernel:
    return Kernel(name, function, bytes_per_element, vectors, {"COLUMNS": columns, "ALIGNED": True, **constants})


STEP = _step("step, float32")
KERNELS = (
    STEP,
    _step("step, float32, in a CUDA graph", capturable=True, types={"lr": "*fp32"}, constants={"LR_ON_DEVICE": True}),
    _step("step, float32, before the first refresh", selection=None),
    _step("step, float32, without accumulation", accumulate=False),
    _step("step, float32, amsgrad", group={"amsgrad": True}),
    _step("step, float32, pretrained decay", group={"pretrained_decay": 0.1}, pretrained_decay=0.1),
    _step("step, float32, unaligned addresses", constants={"ALIGNED": False}),
    _step("step, float32, shard of an inner dimension", constants={"RUN": False}),
    _step("step, bfloat16, moments float32", param=torch.bfloat16),
    _step("step, bfloat16", param=torch.bfloat16, moments=torch.bfloat16),
    _step(
        "step, bfloat16, stochastic rounding",
        param=torch.bfloat16,
        moments=torch.bfloat16,
        stochastic_rounding=True,
    ),
    _step(
        "step, bfloat16, stochastic rounding, importance bfloat16",
        param=torch.bfloat16,
        moments=torch.bfloat16,
        scores=torch.bfloat16,
        stochastic_rounding=True,
    ),
    _pass("accumulate importance", importance._accumulate_kernel, 12, 3, 4, GRAD=tl.float32),
    _pass("histogram", histogram._histogram_kernel, 4, 1, 3, SCORE=tl.float32),
    _pass("rank codes", rank_codes._rank_codes_kernel, 9, 2, 4, SCORE=tl.float32),
    Kernel("perturbation, peaks", perturbation._peaks_kernel, 4, 1, {"BLOCK": 1024}, elements=1024),
    Kernel(
        "perturbation, sum",
        perturbation._perturb_kernel,
        12,
        3,
        {"BLOCK": 1024, "LENGTH_BLOCK": 128, "NORM": "linf"},
        elements=1024,
    ),
    Kernel("symmetric KL, forward", symmetric_kl._forward_kernel, 8, 2, {"BLOCK": 2048}, elements=32768),
    Kernel("symmetric KL, backward", symmetric_kl._backward_kernel, 16, 4, {"BLOCK": 1024, "BLOCKS": 8}, elements=8192),
)
