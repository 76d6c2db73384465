"""Kernels of the RoAST step: a reference in plain torch, native CPU code, Triton for GPUs.

Imported as ``roast_optim.kernels``, installed or not. Programs that are started in the root of a clone also find this
folder under the name ``kernels``, and transformers looks for a package of that name on the package index. Under that
name it gives way to the installed package, or else is empty: no module is ever loaded under two names.
"""

if __name__ == "kernels":
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    root = Path(__file__).resolve().parents[1]
    spec = PathFinder.find_spec(__name__, [entry for entry in sys.path if Path(entry).resolve() != root])
    if spec is not None and spec.loader is not None and spec.has_location:
        sys.modules[__name__] = module_from_spec(spec)  # what an import statement then returns
        spec.loader.exec_module(sys.modules[__name__])
    else:
        __path__ = []
