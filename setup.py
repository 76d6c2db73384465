"""Packages and their folders, and the native kernels; everything else about the project stands in pyproject.toml."""

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
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
            for file in NATIVE.glob("_native*.so"):
                file.unlink()
        super().run()

    def get_ext_filename(self, name: str) -> str:
        """Without the tag of a Python version: the library knows nothing of Python, which loads it by ctypes."""
        return str(Path(*name.split(".")).with_suffix(".so"))

    def build_extension(self, extension: Extension) -> None:
        if platform.machine() in ("x86_64", "AMD64"):
            for file, flags in INSTRUCTION_SETS.items():
                extension.extra_objects += self.compiler.compile(
                    [str(NATIVE / file)], output_dir=self.build_temp, extra_postargs=FLAGS + flags
                )
        super().build_extension(extension)


class WheelForEveryPython(bdist_wheel):
    """One wheel for each platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[
        "roast_optim",
        "roast_optim.evaluation",
        "roast_optim.integrations",
        "roast_optim.kernels",
        "roast_optim.kernels.native",
        "roast_optim.kernels.reference",
        "roast_optim.kernels.triton",
    ],
    # The folder kernels/ is never installed under that name: transformers looks for a top-level package "kernels".
    # It takes the place of roast_optim/kernels/, by which a clone finds it, and which no wheel has.
    package_dir={"roast_optim": "roast_optim", "roast_optim.kernels": "kernels"},
    package_data={"roast_optim": ["py.typed"], "roast_optim.kernels.native": ["*.cpp", "*.h"]},
    include_package_data=False,  # else what MANIFEST.in adds to the source distribution would be in the wheel
    ext_modules=[
        Extension(
            "roast_optim.kernels.native._native",
            sources=sorted(str(file) for file in NATIVE.glob("*.cpp") if file.name not in INSTRUCTION_SETS),
            depends=sorted(str(file) for file in [*NATIVE.glob("*.h"), *map(NATIVE.joinpath, INSTRUCTION_SETS)]),
            extra_compile_args=FLAGS,
            optional=True,  # without a compiler the reference backend does the work
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": WheelForEveryPython},
)
