"""Packages and their folders; everything else about the project stands in pyproject.toml."""

from setuptools import setup

setup(
    packages=[
        "roast_optim",
        "roast_optim.integrations",
        "roast_optim.kernels",
        "roast_optim.kernels.native",
        "roast_optim.kernels.triton",
    ],
    # The folder kernels/ is never installed under that name: transformers looks for a top-level package "kernels".
    package_dir={"roast_optim": "roast_optim", "roast_optim.kernels": "kernels"},
    package_data={"roast_optim": ["py.typed"], "roast_optim.kernels.native": ["*.cpp", "*.h"]},
)
