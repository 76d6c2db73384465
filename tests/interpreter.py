"""Triton's interpreter, made to round to bfloat16 as GPUs do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def round_to_bfloat16_as_gpus_do() -> None:
    """Let conversions between float32 and bfloat16 round to the nearest, ties to even.

    The interpreter of triton 3 cuts the last 16 bits off, and misreads what is below the smallest normal number.
    Parameters then shrink by one unit in the last place at every step, which hides what a test looks for.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = InterpreterBuilder.cast_impl

    def cast_impl(self: Any, source: Any, destination: Any) -> Any:
        types = (source.dtype.scalar, destination.scalar)
        if types == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.atleast_1d(source.data)).bfloat16().view(torch.uint16).numpy()
            return TensorHandle(rounded.reshape(source.data.shape), tl.bfloat16)
        if types == (tl.bfloat16, tl.float32):
            exact = torch.from_numpy(np.atleast_1d(source.data)).view(torch.bfloat16).float().numpy()
            return TensorHandle(exact.reshape(source.data.shape), tl.float32)
        return original(self, source, destination)

    InterpreterBuilder.cast_impl = cast_impl
