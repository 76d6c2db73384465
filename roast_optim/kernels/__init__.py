"""In a clone the kernels lie in the folder ``kernels/`` beside this package; an installed package has that folder here.

Only this package's search path points there. The rest is Python's own: reloading, pickling and spawned processes find
``roast_optim.kernels.backend`` as they find any other module, and under no second name.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "kernels")]
