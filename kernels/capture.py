"""Whether a CUDA graph is being captured, in which nothing may wait for the device or be decided by the host."""

from __future__ import annotations

import torch


def capturing() -> bool:
    """Whether a CUDA graph is being captured on the current stream; never starts CUDA."""
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()
