"""Everything that this project wants to know of a GPU, by one command: ``python -m benchmarks.gpu``."""

from . import source_tree  # noqa: F401 - from now on the package can be imported from its source tree
