"""Triton kernels for GPUs: the fused step, the rank passes, the perturbation and the symmetric KL divergence.

Importing this package needs neither triton nor a GPU. With ``TRITON_INTERPRET=1`` in the environment before triton is
imported, the same kernels run on CPU tensors in triton's interpreter, slowly, for tests.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any, cast

import torch
from torch import Tensor

from ..backend import ActivationKernels
from ..capture import capturing

# Where each name lives; the module, and triton with it, is imported when the name is first asked for.
_NAMES = {
    "FLOAT_TYPES": ".importance",
    "plan": ".roast_adamw",
    "roast_adamw_": ".roast_adamw",
    "accumulate_importance_": ".importance",
    "histogram_": ".histogram",
    "assign_rank_codes_": ".rank_codes",
    "perturbed_embedding": ".perturbation",
    "symmetric_kl_rows": ".symmetric_kl",
}
_SMALLEST_CAPABILITY = (8, 0)  # what triton supports of NVIDIA's GPUs
_launched: dict[int, str | None] = {}  # what came of trying a launch on each GPU


def unavailable(device: torch.device | None = None) -> str | None:
    """Why these kernels cannot run in this process, and what to do about it; None when they can.

    Args:
        device: a GPU on which a kernel is launched to see whether it can be, the first time that this is asked; it
            takes about a second. Importing triton shows nothing: it compiles a launcher in C for every kernel.
    """
    if device is not None and device.type == "cuda" and _index(device) in _launched:
        return _launched[_index(device)]
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'roast-optim[triton]'"
    if _interpreted():
        return None
    if not torch.cuda.is_available():
        return "torch finds no GPU: install a build of torch for CUDA or ROCm and check the driver"
    if not any(_is_recent(index) for index in range(torch.cuda.device_count())):
        return "no GPU here has compute capability 8.0 or higher, which triton needs: use backend='reference'"
    if device is None or not supports(device):
        return None
    return _failure_of_a_launch(_index(device))


def _failure_of_a_launch(index: int) -> str | None:
    if index not in _launched:
        if capturing():  # a capture cannot wait for a launch; what is wrong would be raised by the capture itself
            return None
        _launched[index] = _try_to_launch(index)
    return _launched[index]


def _try_to_launch(index: int) -> str | None:
    device = torch.device("cuda", index)
    try:
        __getattr__("accumulate_importance_")([torch.zeros(1, device=device)], [torch.ones(1, device=device)])
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the compiler, of a missing header, of the driver: triton raises what they raise
        said = (str(error).strip().splitlines() or [""])[0]
        return (
            f"triton cannot launch a kernel on {device} ({type(error).__name__}: {said[:200]}): install a C compiler "
            "(gcc, or set CC) and Python's headers (python3-dev)"
        )
    return None


def supports(device: torch.device) -> bool:
    """Whether tensors on ``device`` can be given to these kernels."""
    if _interpreted():
        return device.type == "cpu"
    return device.type == "cuda" and _is_recent(_index(device))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def activation_kernels(*tensors: Tensor) -> ActivationKernels | None:
    """The kernels of this module, if they can take these tensors: on one GPU, of dtypes that they know."""
    device = tensors[0].device
    if not supports(device) or unavailable(device) is not None:
        return None
    known = __getattr__("FLOAT_TYPES")
    if any(tensor.device != device or tensor.dtype not in known for tensor in tensors):
        return None
    return cast(ActivationKernels, sys.modules[__name__])


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _is_recent(index: int) -> bool:
    return torch.version.hip is not None or torch.cuda.get_device_capability(index) >= _SMALLEST_CAPABILITY


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name], __package__), name)
