"""A clone works as it is: the package is imported from it, installed or not, and nothing has two names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.environments import copy_source_tree, make_environment, output_of

# Any import of these fails: a machine without pip's tools.
WITHOUT_BUILD_TOOLS = "import sys; sys.modules.update(dict.fromkeys(('pip', 'setuptools', 'wheel', 'pkg_resources')))\n"
STEP = (
    "import torch, roast_optim\n"
    "p = torch.ones(8, requires_grad=True); p.grad = torch.ones(8)\n"
    "o = roast_optim.RoastAdamW([p], backend='reference'); o.step(); o.refresh(); o.step()\n"
    "import roast_optim.kernels.reference as r; print(roast_optim.__file__, r.__file__, sep='\\n')\n"
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter without the package."""
    return make_environment(tmp_path_factory.mktemp("without") / "venv")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which nothing is built."""
    folder = tmp_path_factory.mktemp("clone")
    copy_source_tree(folder)
    return folder


def files_of(tree: Path) -> list[str]:
    return [str(tree / "roast_optim" / "__init__.py"), str(tree / "kernels" / "reference" / "__init__.py")]


def test_the_interpreter_does_not_have_the_package(python: Path, tmp_path: Path) -> None:
    code = "import importlib.util; print(importlib.util.find_spec('roast_optim'))"
    assert output_of([python, "-c", code], tmp_path) == "None"


def test_a_script_in_the_root_imports_the_package_and_trains_without_build_tools(python: Path, tree: Path) -> None:
    script = tree / "my_script.py"
    script.write_text(WITHOUT_BUILD_TOOLS + STEP)
    for folder in (tree, tree.parent):
        assert output_of([python, script], folder).splitlines() == files_of(tree)
    assert output_of([python, "-c", WITHOUT_BUILD_TOOLS + STEP], tree).splitlines() == files_of(tree)


def test_a_program_elsewhere_imports_the_package_by_the_path_of_the_clone(
    python: Path, tree: Path, tmp_path: Path
) -> None:
    assert output_of([python, "-c", STEP], tmp_path, PYTHONPATH=str(tree)).splitlines() == files_of(tree)


def test_a_recipe_runs_as_a_script(python: Path, tree: Path) -> None:
    assert "epoch 3" in output_of([python, "-W", "ignore", "docs/recipes/plain_loop.py"], tree)


def test_every_recipe_finds_the_package(python: Path, tree: Path) -> None:
    code = (
        "import runpy, sys; from pathlib import Path\n"
        "for recipe in sorted(Path('docs/recipes').resolve().glob('*.py')):\n"
        "    if recipe.stem == 'tour': continue  # which has no main(): to import it is to run it\n"
        "    before, sys.path[0] = sys.path[:], str(recipe.parent)\n"
        "    runpy.run_path(str(recipe), run_name='imported')\n"
        "    assert 'roast_optim' in sys.modules, recipe\n"
        "    for name in [n for n in sys.modules if n.partition('.')[0] == 'roast_optim']: del sys.modules[name]\n"
        "    sys.path[:] = before\n"
    )
    script = tree.parent / "run_recipes.py"  # not in the root, which would then be on the path
    script.write_text(code)
    output_of([python, script], tree)


@pytest.mark.parametrize("module", ["benchmarks.robustness", "benchmarks.scaling"])
def test_the_programs_of_the_clone_start(module: str, python: Path, tree: Path) -> None:
    assert "usage:" in output_of([python, "-m", module, "--help"], tree)


def test_the_version_is_known(python: Path, tree: Path) -> None:
    code = "import roast_optim; print(roast_optim.__version__)"
    version = output_of([python, "-c", code], tree)
    assert version.count(".") == 2
    assert output_of([python, "setup.py", "--version"], tree) == version


def test_the_clone_goes_before_another_that_is_installed(python: Path, tree: Path, tmp_path: Path) -> None:
    """The other one is installed as pip install -e . does it: by a finder that knows every package of it."""
    other = tmp_path / "other"
    copy_source_tree(other)
    environment = make_environment(tmp_path / "venv")
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "editable.py").write_text(
        "import sys\nfrom importlib.util import spec_from_file_location\n"
        f"folders = {{'roast_optim': r'{other}/roast_optim', 'roast_optim.kernels': r'{other}/kernels'}}\n"
        "class Finder:\n    @staticmethod\n    def find_spec(name, path=None, target=None):\n"
        "        if name in folders: return spec_from_file_location(name, folders[name] + '/__init__.py')\n"
        "sys.meta_path.append(Finder)\n"
    )
    (packages / "editable.pth").write_text("import editable")
    assert output_of([environment, "-c", STEP], tree).splitlines() == files_of(tree)
    assert output_of([environment, "-c", STEP], tmp_path).splitlines() == files_of(other)


def test_modules_are_reloaded_found_and_listed_like_any_other(python: Path, tree: Path) -> None:
    code = (
        "import importlib, importlib.resources, importlib.util, pkgutil, sys\n"
        "import roast_optim, roast_optim.kernels, roast_optim.kernels.backend as backend\n"
        "for module in (backend, roast_optim.kernels, roast_optim): assert importlib.reload(module) is module\n"
        "assert importlib.util.find_spec('roast_optim.kernels.triton').origin.endswith('kernels/triton/__init__.py')\n"
        "for name in [n for n in sys.modules if n.startswith('roast_optim.kernels')]: del sys.modules[name]\n"
        "assert importlib.import_module('roast_optim.kernels.backend') is not backend\n"
        "names = {module.name for module in pkgutil.walk_packages(roast_optim.__path__, 'roast_optim.')}\n"
        "assert {'roast_optim.kernels.native.library', 'roast_optim.optimizer'} <= names, names\n"
        "assert not any('tests' in name or 'benchmarks' in name for name in names), names\n"
        "assert (importlib.resources.files('roast_optim.kernels.native') / 'step.h').is_file()\n"
    )
    output_of([python, "-c", code], tree)


def test_objects_of_the_kernels_go_to_spawned_processes(python: Path, tree: Path) -> None:
    script = tree / "spawn.py"
    script.write_text(
        "import multiprocessing, pickle, sys\n"
        "from roast_optim.kernels.step import Position\n"
        "def show(position): return type(position).__module__, sys.modules[Position.__module__].__file__\n"
        "if __name__ == '__main__':\n"
        "    position = Position.whole(3, 5)\n"
        "    assert pickle.loads(pickle.dumps(position)) == position\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool: print(*pool.apply(show, (position,)))\n"
    )
    assert output_of([python, script], tree.parent) == f"roast_optim.kernels.step {tree}/kernels/step.py"


def test_no_file_is_loaded_under_two_names(python: Path, tree: Path) -> None:
    code = (
        "import collections, importlib, pkgutil, sys, transformers, roast_optim, kernels\n"
        "for module in pkgutil.walk_packages(roast_optim.__path__, 'roast_optim.'):\n"
        "    importlib.import_module(module.name)\n"
        "for name in ('kernels.backend', 'kernels.native', 'kernels.triton', 'kernels.reference'):\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error: assert error.name == name, error\n"
        "    else: raise AssertionError(name)\n"
        "names = collections.defaultdict(set)\n"
        "for module in list(sys.modules.values()):\n"
        f"    if (getattr(module, '__file__', None) or '').startswith({str(tree)!r}):\n"
        "        names[module.__file__].add(module.__name__)\n"
        "assert len(names) > 30 and all(len(several) == 1 for several in names.values()), names\n"
    )
    output_of([python, "-c", code], tree)


def test_transformers_does_not_take_the_folder_for_the_kernels_package(python: Path, tree: Path) -> None:
    code = "from transformers.utils import is_kernels_available; print(is_kernels_available())"
    assert output_of([python, "-c", code], tree) == "False"


def test_the_kernels_package_of_others_is_found_from_the_root_if_it_is_installed(
    python: Path, tree: Path, tmp_path: Path
) -> None:
    package = tmp_path / "kernels"
    (package / "layer").mkdir(parents=True)
    (package / "__init__.py").write_text("from .layer import Mode\n")
    (package / "layer" / "__init__.py").write_text("import kernels\nclass Mode: pass\n")
    code = (
        "import importlib, sys, kernels, kernels.layer; from kernels import Mode\n"
        "import roast_optim.kernels.backend as backend\n"
        "assert kernels is sys.modules['kernels'] and Mode is kernels.layer.Mode and kernels.layer.kernels is kernels\n"
        "importlib.reload(kernels); print(sys.modules['kernels'].__file__, backend.__file__)\n"
    )
    found = output_of([python, "-c", code], tree, PYTHONPATH=str(tmp_path))
    assert found == f"{package}/__init__.py {tree}/kernels/backend.py"


def test_a_folder_that_only_has_the_name_is_not_taken_for_the_kernels_package(
    python: Path, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "kernels").mkdir()
    code = "import kernels; print(kernels.__path__)"
    assert output_of([python, "-c", code], tree, PYTHONPATH=str(tmp_path)) == "[]"


def test_a_package_of_others_that_fails_is_not_left_half_loaded(python: Path, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text("import no_such_module")
    code = (
        "import sys\n"
        "try: import kernels\n"
        "except ModuleNotFoundError as error: print(error.name, 'kernels' in sys.modules)\n"
    )
    assert output_of([python, "-c", code], tree, PYTHONPATH=str(tmp_path)) == "no_such_module False"


def test_a_link_to_the_package_finds_the_kernels_of_the_folder_it_leads_to(
    python: Path, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "roast_optim").symlink_to(tree / "roast_optim")
    kernels = output_of([python, "-c", STEP], tmp_path).splitlines()[1]
    assert kernels == files_of(tree)[1]


def test_the_tests_pass_from_a_clone(python: Path, tree: Path) -> None:
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_reference.py"]
    assert " passed" in output_of(command, tree)
