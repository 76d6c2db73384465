"""Choice of the backend for a device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .kernels.backend import BACKEND_NAMES, ActivationKernels, Backend, load_backend
from .kernels.plan import StepPlan
from .user_warning import warn as warn_user

# The fastest backend of each kind of device; every other device runs the reference.
_FASTEST = {"cpu": "native", "cuda": "triton"}
_told: set[str] = set()


def check_backend(name: str) -> str:
    """``name``, if it is "auto" or a backend that can run in this process.

    Raises:
        ValueError: an unknown name, or a backend that cannot run here, with the reason and the cure.
    """
    if name not in ("auto", *BACKEND_NAMES):
        raise ValueError(f"RoastAdamW: invalid backend={name!r}; it must be one of {('auto', *BACKEND_NAMES)}")
    if name != "auto" and (reason := load_backend(name).unavailable()) is not None:
        raise ValueError(f"RoastAdamW: backend={name!r} cannot run here: {reason}")
    return name


def backend_for(name: str, device: torch.device, warn: Callable[[str], None]) -> Backend:
    """The backend that runs parameters on ``device``.

    Args:
        name: what the user asked for, already checked.
        device: where the parameters lie.
        warn: told why "auto" falls back to the reference, and what to do about it.

    Raises:
        ValueError: the backend that was asked for cannot run on that device.
    """
    if name == "auto":
        fastest = _FASTEST.get(device.type, "reference")
        backend = load_backend(fastest)
        reason = backend.unavailable(device)
        if reason is None and backend.supports(device):
            return backend
        reason = reason or f"it does not support {device}"
        warn(f"RoastAdamW runs on the slow reference backend, because the {fastest} backend cannot run here: {reason}")
        return load_backend("reference")
    backend = load_backend(name)
    if not backend.supports(device):
        raise ValueError(f"RoastAdamW: backend={name!r} cannot run parameters on {device}; use backend='auto'")
    if (reason := backend.unavailable(device)) is not None:
        raise ValueError(f"RoastAdamW: backend={name!r} cannot run parameters on {device}: {reason}")
    return backend


def tell_fallbacks(plan: StepPlan, warn: Callable[[str], None]) -> None:
    """Tell ``warn`` why a fast backend leaves some parameters of a step to the reference, and what to do about it."""
    for reason in plan.fallbacks:
        warn(f"RoastAdamW takes the slow reference backend for some parameters: {reason}")


def fused_kernels(*tensors: Tensor) -> ActivationKernels | None:
    """The kernels of the perturbation and of the symmetric KL divergence, of a backend that can take these tensors.

    None: plain torch does it, as on every CPU, for float64, and in code that is being compiled. Where that is because a
    GPU's kernels cannot run, it is said once.
    """
    if torch.compiler.is_compiling():
        return None
    device = tensors[0].device
    fastest = _FASTEST.get(device.type)
    if device.type != "cpu" and fastest is not None and (reason := load_backend(fastest).unavailable(device)):
        if reason not in _told:
            _told.add(reason)
            warn_user(f"the adversary runs without its fused kernels, in plain torch on {device}: {reason}")
        return None
    offered = (load_backend(name).activation_kernels(*tensors) for name in BACKEND_NAMES)
    return next((kernels for kernels in offered if kernels is not None), None)
