"""The package installs under its own name only, and says what is wrong where it cannot be imported."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["with-compiler", "without-compiler"])
def test_wheel_installs_nothing_named_kernels_and_works_without_a_compiler(tmp_path: Path, compiler: str) -> None:
    environment = (
        {"PATH": "/usr/bin:/bin"} if compiler == "with-compiler" else {"PATH": "", "CC": "none", "CXX": "none"}
    )
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(source),
        ],
        check=True,
        env=environment,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"roast_optim"}
    assert "roast_optim/kernels/reference.py" in names
    assert "roast_optim/py.typed" in names
    assert any(name.endswith(".so") for name in names) == (compiler == "with-compiler")

    target = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(target)
    code = (
        f"import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        f"sys.path.insert(0, {str(target)!r})\n"
        "import torch, warnings; warnings.simplefilter('ignore')\n"
        "from roast_optim import RoastAdamW\n"
        "from roast_optim.kernels.backend import load_backend\n"
        "p = torch.ones(8, requires_grad=True); p.grad = torch.ones(8)\n"
        "o = RoastAdamW([p]); o.step(); o.refresh(); o.step()\n"
        "print(load_backend('native').unavailable() is None)\n"
    )
    result = run_python(code, tmp_path)
    assert result.stdout.strip() == str(compiler == "with-compiler"), result.stderr
