"""Other warps, blocks per program and elements per thread for the kernels that read a table, without editing them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch

PACKAGE = "roast_optim.kernels.triton"
WARPS, BLOCKS, ELEMENTS = "WARPS", "BLOCKS_PER_PROGRAM", "ELEMENTS_PER_THREAD"


@dataclass(frozen=True)
class Launching:
    """One way to launch.

    Attributes:
        warps: of a program.
        blocks: that a program handles one after the other.
        elements: of a block, per thread.
    """

    warps: int
    blocks: int
    elements: int

    def __str__(self) -> str:
        return f"{self.warps} warps, {self.blocks} blocks, {self.elements} elements"


def present() -> Launching:
    """As the kernels are launched now."""
    launch = _launch_module()
    return Launching(getattr(launch, WARPS), getattr(launch, BLOCKS), getattr(launch, ELEMENTS))


@contextmanager
def launched(way: Launching) -> Iterator[None]:
    """Launch that way inside.

    The constants are replaced in every loaded module that has them, as modules take names from one another. What a
    backend keeps from one step to the next was made for one way of launching: give each way an optimizer of its own.
    """
    launch = _launch_module()
    values = {WARPS: way.warps, BLOCKS: way.blocks, ELEMENTS: way.elements}
    modules = [module for name, module in sys.modules.items() if name.startswith(PACKAGE) and module is not None]
    before = [(module, name, getattr(module, name)) for module in modules for name in values if name in vars(module)]
    options = dict(launch.OPTIONS)
    for module, name, _ in before:
        setattr(module, name, values[name])
    launch.OPTIONS["num_warps"] = way.warps
    try:
        _check(launch, way)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        launch.OPTIONS.update(options)


def _check(launch: ModuleType, way: Launching) -> None:
    """That the constants are what counts, lest every way be the present one."""
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        wanted = way.elements * launch.lanes(device) * way.warps
        if launch.block_size(device) != wanted:
            raise RuntimeError(f"{way} makes blocks of {launch.block_size(device)} elements, not of {wanted}")


def _launch_module() -> ModuleType:
    """The module with the constants, after everything that takes them from it.

    Raises:
        AttributeError: it has other names by now.
    """
    for name in ("roast_adamw", "pointer_table"):
        importlib.import_module(f"{PACKAGE}.{name}")
    launch = importlib.import_module(f"{PACKAGE}.launch")
    for name in (WARPS, BLOCKS, ELEMENTS, "OPTIONS"):
        if not hasattr(launch, name):
            raise AttributeError(
                f"{PACKAGE}.launch has no {name}: adapt {__name__} to how the kernels are launched now"
            )
    return launch
