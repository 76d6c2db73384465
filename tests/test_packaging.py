"""The package installs under its own name only, for every version of Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.environments import ROOT, make_environment, output_of


def test_kernels_are_importable_from_any_directory(tmp_path: Path) -> None:
    for folder in (ROOT, tmp_path):
        command = [sys.executable, "-c", "import roast_optim.kernels.reference as r; print(r.__name__)"]
        assert output_of(command, folder) == "roast_optim.kernels.reference"


def test_importing_the_package_needs_neither_triton_nor_transformers(tmp_path: Path) -> None:
    code = "import sys, roast_optim; print(sorted({'triton', 'transformers', 'datasets'} & set(sys.modules)))"
    assert output_of([sys.executable, "-c", code], tmp_path) == "[]"


WITH_COMPILER = {"PATH": "/usr/bin:/bin"}
WITHOUT_COMPILER = {"PATH": "", "CC": "none", "CXX": "none"}


def run(*command: str | Path, **options: Any) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed files alone."""
    folder = tmp_path_factory.mktemp("clone")
    run("git", "clone", "--quiet", ROOT, folder)
    return folder


@pytest.fixture(scope="session")
def distributions(clone: Path) -> Path:
    """A folder with the sdist and the wheel that is built from it."""
    run(sys.executable, "-m", "build", "--no-isolation", clone, env=WITH_COMPILER)
    return clone / "dist"


@pytest.fixture
def clean_python(tmp_path: Path) -> Path:
    """An interpreter without the package."""
    return make_environment(tmp_path / "venv")


@pytest.mark.slow
def test_the_distributions_are_fit_for_the_package_index(distributions: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *distributions.iterdir())


@pytest.mark.slow
def test_the_wheel_holds_one_package_with_types_and_native_kernels_for_every_python(distributions: Path) -> None:
    (wheel,) = distributions.glob("*-py3-none-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.read("roast_optim/kernels/__init__.py") == (ROOT / "kernels" / "__init__.py").read_bytes()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"roast_optim"}
    assert {"roast_optim/kernels/reference/roast_adamw.py", "roast_optim/py.typed"} <= set(names)
    assert "roast_optim/kernels/native/_native.so" in names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "environment", "native"),
    [("whl", WITHOUT_COMPILER, True), ("tar.gz", WITH_COMPILER, True), ("tar.gz", WITHOUT_COMPILER, False)],
    ids=["wheel", "sdist with a compiler", "sdist without a compiler"],
)
def test_a_distribution_installs_into_a_clean_environment_and_trains(
    ending: str, environment: dict[str, str], native: bool, distributions: Path, clean_python: Path, tmp_path: Path
) -> None:
    (distribution,) = distributions.glob(f"*.{ending}")
    run(
        sys.executable, "-m", "pip", "--python", clean_python, "install", "--quiet", "--no-deps",
        "--no-build-isolation", "--ignore-installed", distribution, env=environment,
    )  # fmt: skip
    code = (
        "import torch, warnings; warnings.simplefilter('ignore')\n"
        "import roast_optim, roast_optim.kernels\n"
        "from roast_optim.kernels.backend import load_backend\n"
        "p = torch.ones(8, requires_grad=True); p.grad = torch.ones(8)\n"
        "o = roast_optim.RoastAdamW([p]); o.step(); o.refresh(); o.step()\n"
        "print(load_backend('native').unavailable() is None, 'venv/lib' in roast_optim.kernels.__file__)\n"
    )
    done = subprocess.run([clean_python, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [str(native), "True"], done.stderr


@pytest.mark.slow
def test_an_unpacked_source_distribution_works_as_it_is(
    distributions: Path, clean_python: Path, tmp_path: Path
) -> None:
    (archive,) = distributions.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    (folder,) = tmp_path.glob("roast_optim-*")
    code = "import roast_optim.kernels.backend as backend; print(backend.__file__)"
    assert output_of([clean_python, "-c", code], folder) == str(folder / "kernels" / "backend.py")


@pytest.mark.slow
def test_an_editable_install_is_the_clone(clone: Path, clean_python: Path, tmp_path: Path) -> None:
    run(
        sys.executable, "-m", "pip", "--python", clean_python, "install", "--quiet", "--no-deps",
        "--no-build-isolation", "--editable", clone, env=WITH_COMPILER,
    )  # fmt: skip
    code = (
        "import importlib.metadata, roast_optim, roast_optim.kernels.native as native\n"
        "assert importlib.metadata.version('roast-optim') == roast_optim.__version__\n"
        "print(native.__file__, native.unavailable())\n"
    )
    for folder in (tmp_path, clone):
        assert output_of([clean_python, "-c", code], folder) == f"{clone}/kernels/native/__init__.py None"
