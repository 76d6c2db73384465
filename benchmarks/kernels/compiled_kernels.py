"""The Triton kernels as they are launched, compiled ahead of time for GPUs that need not be there."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from roast_optim.kernels.step import accesses, names_in_step
from roast_optim.kernels.triton import histogram, importance, perturbation, rank_codes, roast_adamw_kernel, symmetric_kl
from roast_optim.kernels.triton.launch import BLOCKS_PER_PROGRAM, ELEMENTS_PER_THREAD, OPTIONS, WARPS, row_options

from .disassembly import Listing, amd_listing, nvidia_listing, wide_accesses

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# The argument types of all kernels, by name. ":16" marks integers that are multiples of 16, as pointers are.
_STRIDES = [
    f"{of}{which}_stride" for of in ("", "embedding_", "gradient_", "perturbed_") for which in ("sample", "token")
]
_TYPES = {
    **dict.fromkeys(("rows", "selection_table", "counts", "not_finite"), "*i64"),
    "tensor_of_program": "*i32",
    **dict.fromkeys(("key0", "key1", "draw_number", "length", "parts"), "i32"),
    **dict.fromkeys(("lr", "weight_decay", "eps", "beta1", "one_minus_beta1", "log_beta1"), "fp32"),
    **dict.fromkeys(("beta2", "one_minus_beta2", "log_beta2", "step_size"), "fp32"),
    **dict.fromkeys(("codes", "tokens", "counted"), "*u8"),
    **dict.fromkeys(("embedding", "gradient", "perturbed", "peaks"), "*fp32"),
    **dict.fromkeys(("logits_p", "logits_q", "divergences", "statistics", "upstream", "grad_p", "grad_q"), "*fp32"),
    **dict.fromkeys((*_STRIDES, "hidden", "p_stride", "q_stride", "classes"), "i32:16"),
}
_STEP: dict[str, Any] = {
    "COLUMNS": 2 + len(roast_adamw_kernel.COLUMNS),
    **dict.fromkeys(("PARAM_TYPE", "GRAD_TYPE", "STATE_TYPE"), tl.float32),
    "LARGEST": torch.finfo(torch.float32).max,
    **dict.fromkeys(("ALIGNED", "RUN", "ACCUMULATE", "SELECT", "DRAW_BY_STEP"), True),
    **dict.fromkeys(("AMSGRAD", "MAXIMIZE", "STEP_ON_DEVICE", "LR_ON_DEVICE"), False),
}
_BFLOAT16: dict[str, Any] = {
    "PARAM_TYPE": tl.bfloat16,
    "GRAD_TYPE": tl.bfloat16,
    "LARGEST": torch.finfo(torch.bfloat16).max,
}
_UNSELECTED: dict[str, Any] = {"SELECT": False, "DRAW_BY_STEP": False, "selection_table": None}


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
        types = {name: {**_TYPES, **self.types}[name] for name in names if name not in known}
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


_DTYPES = {tl.float32: torch.float32, tl.bfloat16: torch.bfloat16}
_NEEDED_BY = {"AMSGRAD": "amsgrad"}  # the group option with which the kernel is compiled so


def _step(name: str, types: Mapping[str, str] | None = None, **changes: Any) -> Kernel:
    """A step, whose memory traffic follows from the tensors that it uses."""
    constants = {**_STEP, **changes}
    group = {"selective": True, **{option: constants[constant] for constant, option in _NEEDED_BY.items()}}
    used = names_in_step(group, accumulate=constants["ACCUMULATE"], select=constants["SELECT"])
    moved = accesses(used, _DTYPES[constants["PARAM_TYPE"]], _DTYPES[constants["STATE_TYPE"]])
    vectors = moved.count(4) if constants["ALIGNED"] else 0  # four elements of four bytes make 128 bits
    return Kernel(name, roast_adamw_kernel.roast_adamw_kernel, sum(moved), vectors, constants, types or {})


def _pass(name: str, function: Any, bytes_per_element: float, vectors: int, columns: int, **constants: Any) -> Kernel:
    return Kernel(name, function, bytes_per_element, vectors, {"COLUMNS": columns, "ALIGNED": True, **constants})


STEP = _step("step, float32")
KERNELS = (
    STEP,
    _step("step, float32, in a CUDA graph", {"lr": "*fp32"}, STEP_ON_DEVICE=True, LR_ON_DEVICE=True),
    _step("step, float32, before the first refresh", **_UNSELECTED),
    _step("step, float32, without accumulation", ACCUMULATE=False),
    _step("step, float32, amsgrad", AMSGRAD=True),
    _step("step, float32, unaligned addresses", ALIGNED=False),
    _step("step, float32, shard of an inner dimension", RUN=False),
    _step("step, bfloat16, moments float32", **_BFLOAT16),
    _step("step, bfloat16", **_BFLOAT16, STATE_TYPE=tl.bfloat16),
    _pass("accumulate importance", importance._accumulate_kernel, 12, 3, 4, GRAD=tl.float32),
    _pass("histogram", histogram._histogram_kernel, 4, 1, 3),
    _pass("rank codes", rank_codes._rank_codes_kernel, 9, 2, 4),
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
