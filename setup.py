"""Packages and their folders, and the native kernels; everything else about the project stands in pyproject.toml."""

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path("kernels/native")
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Files that are compiled for more than the oldest processor; the library chooses among them when it is loaded.
INSTRUCTION_SETS = {
    "kernels_avx2.cpp": ["-mavx2", "-mfma"],
    "kernels_avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi", "-mfma"],
}


class BuildNative(build_ext):
    """Compiles each file for its instruction set. Warnings are errors only with CXXFLAGS=-Werror: compilers differ."""

    def run(self) -> None:
        if self.inplace:  # else a library of older sources would stay where these cannot be compiled
            for extension in self.extensions:
                (NATIVE / Path(self.get_ext_filename(extension.name)).name).unlink(missing_ok=True)
        super().run()

    def build_extension(self, extension: Extension) -> None:
        if platform.machine() in ("x86_64", "AMD64"):
            for file, flags in INSTRUCTION_SETS.items():
                extension.extra_objects += self.compiler.compile(
                    [str(NATIVE / file)], output_dir=self.build_temp, extra_postargs=FLAGS + flags
                )
        super().build_extension(extension)


setup(
    packages=[
        "roast_optim",
        "roast_optim.evaluation",
        "roast_optim.integrations",
        "roast_optim.kernels",
        "roast_optim.kernels.native",
        "roast_optim.kernels.triton",
    ],
    # The folder kernels/ is never installed under that name: transformers looks for a top-level package "kernels".
    package_dir={"roast_optim": "roast_optim", "roast_optim.kernels": "kernels"},
    package_data={"roast_optim": ["py.typed"], "roast_optim.kernels.native": ["*.cpp", "*.h"]},
    ext_modules=[
        Extension(
            "roast_optim.kernels.native._native",
            sources=sorted(str(file) for file in NATIVE.glob("*.cpp") if file.name not in INSTRUCTION_SETS),
            depends=sorted(str(file) for file in [*NATIVE.glob("*.h"), *map(NATIVE.joinpath, INSTRUCTION_SETS)]),
            extra_compile_args=FLAGS,
            optional=True,  # without a compiler the reference backend does the work
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
