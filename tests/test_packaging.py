"""The package installs under its own name only, and says what is wrong where it cannot be imported."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


def test_transformers_does_not_take_our_kernels_folder_for_the_kernels_package() -> None:
    code = "from transformers.utils import is_kernels_available; print(is_kernels_available())"
    result = run_python(code, ROOT)
    assert result.stdout.strip() == "False", result.stderr


def test_kernels_are_importable_from_any_directory(tmp_path: Path) -> None:
    for folder in (ROOT, tmp_path):
        result = run_python("import roast_optim.kernels.reference as r; print(r.__name__)", folder)
        assert result.stdout.strip() == "roast_optim.kernels.reference", result.stderr


def test_importing_the_package_needs_neither_triton_nor_transformers(tmp_path: Path) -> None:
    code = "import sys, roast_optim; print(sorted({'triton', 'transformers', 'datasets'} & set(sys.modules)))"
    result = run_python(code, tmp_path)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_source_tree_without_an_install_says_how_to_get_one() -> None:
    code = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "sys.modules.pop('roast_optim', None)\n"
        "import roast_optim\n"
    )
    result = run_python(code, ROOT)
    assert result.returncode != 0
    assert "ImportError: roast_optim.kernels is not here" in result.stderr
    assert "pip install -e ." in result.stderr


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
    """The interpreter of a new environment, which sees installed packages but no editable one."""
    venv.create(tmp_path / "venv", with_pip=False)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]))
    return tmp_path / "venv" / "bin" / "python"


@pytest.mark.slow
def test_the_distributions_are_fit_for_the_package_index(distributions: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *distributions.iterdir())


@pytest.mark.slow
def test_the_wheel_holds_one_package_with_types_and_native_kernels(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"roast_optim"}
    assert {"roast_optim/kernels/reference.py", "roast_optim/py.typed"} <= set(names)
    assert any(name.endswith(".so") for name in names)


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
