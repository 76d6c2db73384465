"""The device of the tests of kernels, conformity and random trainings; the CPU, or that of ROAST_TEST_DEVICE.

    ROAST_TEST_DEVICE=cuda python -m pytest tests/kernels/triton

Inputs are made on the CPU and placed on the device; results are compared on the CPU. On the CPU, where triton's
interpreter takes the place of the GPU, tensors are placed in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from roast_optim.kernels.backend import BACKEND_NAMES, Backend, load_backend
from roast_optim.kernels.step import StepOptions, StepRow

VARIABLE = "ROAST_TEST_DEVICE"
CPU = torch.device("cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def device_of_the_tests(name: str) -> torch.device:
    """The device of that name, with its index.

    Raises:
        pytest.UsageError: there is none, or nothing runs there.
    """
    if name not in ("cpu", "cuda") and not name.startswith("cuda:"):
        raise pytest.UsageError(f"{VARIABLE}={name!r} must be cpu, cuda or cuda:N")
    if name == "cpu":
        return CPU
    if INTERPRETED:
        raise pytest.UsageError(f"{VARIABLE}={name!r} with TRITON_INTERPRET=1, which needs the CPU: unset one of them")
    device = torch.device(name if ":" in name else f"{name}:0")
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.index >= number:
        raise pytest.UsageError(f"{VARIABLE}={name!r}, but torch finds {number} GPUs here: check the driver")
    return device


DEVICE = device_of_the_tests(os.environ.get(VARIABLE, "cpu"))


def backends_on(device: torch.device) -> list[str]:
    """The backends that can run tensors on a device here."""
    backends = {name: load_backend(name) for name in BACKEND_NAMES}
    return [name for name, each in backends.items() if each.supports(device) and each.unavailable() is None]


BACKENDS = backends_on(DEVICE)
# An example takes these many times as long as it takes the others: triton interprets, or compiles each variant.
SLOW_BACKENDS = [name for name in BACKENDS if DEVICE != CPU or (INTERPRETED and name == "triton")]


# ------------------------------------------------------------------------------------------------------------- placing


class Places:
    """Copies of tensors on a device. Whole storages are copied, each once.

    Strides, offsets, gaps and shared memory are therefore those of the originals.
    """

    def __init__(self, device: torch.device = DEVICE) -> None:
        self._device = device
        self._storages: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """The copy of a tensor on the CPU; of another, itself."""
        if tensor.device != CPU:
            return tensor
        original = tensor.untyped_storage()
        if original._cdata not in self._storages:
            copied = torch.UntypedStorage(original.nbytes(), device=self._device).copy_(original)
            self._storages[original._cdata] = (original, copied)
        storage = self._storages[original._cdata][1]
        placed = torch.empty(0, dtype=tensor.dtype, device=self._device)
        placed.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())  # type: ignore[call-overload]
        return placed

    def bring_back(self) -> None:
        """Let the originals hold what became of the copies."""
        for original, copied in self._storages.values():
            original.copy_(copied)


def placed(tensor: Tensor) -> Tensor:
    """A copy on the device with the same strides, offset and alignment."""
    return Places().of(tensor.detach())


class _Placed(torch.autograd.Function):
    """A copy on the device, whose gradient comes back to the CPU."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return placed(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.cpu()


def differentiably_placed(tensor: Tensor) -> Tensor:
    """As :func:`placed`; backward passes go on to the tensor on the CPU."""
    copied: Tensor = _Placed.apply(tensor)  # type: ignore[no-untyped-call]
    return copied


class BackendOnDevice:
    """A backend that takes tensors on the CPU: it works on copies on the device and brings back what became of them."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def roast_adamw_(self, rows: Sequence[StepRow], options: StepOptions) -> None:
        """A step; counts lie on the device only with ``capturable``."""
        places = Places()
        apart = set() if options.capturable else {"step"}
        moved = [_with_tensors(row, places.of, apart) for row in rows]
        self._backend.roast_adamw_(moved, _options(options, places.of))
        places.bring_back()

    def accumulate_importance_(self, importances: list[Tensor], grads: list[Tensor]) -> None:
        """See :class:`Backend`."""
        self._in_place(self._backend.accumulate_importance_, importances, grads)

    def histogram_(self, scores: list[Tensor], counts: Tensor) -> None:
        """See :class:`Backend`."""
        self._in_place(self._backend.histogram_, scores, counts)

    def assign_rank_codes_(self, importances: list[Tensor], rank_codes: list[Tensor], table: Tensor) -> None:
        """See :class:`Backend`."""
        self._in_place(self._backend.assign_rank_codes_, importances, rank_codes, table)

    def _in_place(self, function: Callable[..., None], *arguments: Tensor | Iterable[Tensor]) -> None:
        places = Places()
        function(*(places.of(each) if isinstance(each, Tensor) else list(map(places.of, each)) for each in arguments))
        places.bring_back()


def on_device(backend: str) -> BackendOnDevice:
    """The backend of that name."""
    return BackendOnDevice(load_backend(backend))


def _with_tensors(row: StepRow, change: Callable[[Tensor], Tensor], apart: Iterable[str]) -> StepRow:
    return replace(row, **{name: change(tensor) for name, tensor in row.tensors() if name not in apart})


def _options(options: StepOptions, change: Callable[[Tensor], Tensor]) -> StepOptions:
    """The betas stay where they are: on a GPU they would send the step to the reference."""
    selection = options.selection
    if selection is not None:
        tables = {"thresholds": change(selection.thresholds), "rescaling": change(selection.rescaling)}
        selection = replace(selection, **tables)
    scalars = {name: getattr(options, name) for name in ("lr", "gradient_factor")}
    scalars = {name: change(scalar) for name, scalar in scalars.items() if isinstance(scalar, Tensor)}
    return replace(options, selection=selection, **scalars)
