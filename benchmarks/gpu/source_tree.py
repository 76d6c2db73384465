"""Lets the package be imported from its source tree, in which ``roast_optim.kernels`` is the folder ``kernels``.

To be deleted, with its mentions in ``__init__.py`` and ``stages/kernel_tests.py``, when ``roast_optim`` finds that
folder by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

NAME = "roast_optim.kernels"
FOLDER = Path(__file__).parents[2] / "kernels"


def find_kernels() -> None:
    """Register the folder beside ``roast_optim`` under its name, unless the package is installed."""
    try:
        importlib.import_module(NAME)
    except ImportError as error:
        if error.name != NAME:
            raise
        spec = importlib.util.spec_from_file_location(
            NAME, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


find_kernels()
