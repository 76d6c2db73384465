"""The examples in docstrings do what they show, and the site is not built with a link that leads nowhere."""

from __future__ import annotations

import doctest
import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import roast_optim
from roast_optim import AdversarialEmbedding, RoastAdamW, selective_param_groups
from roast_optim.evaluation import evaluate

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules_with_examples() -> list[str]:
    """Names of the modules of the package in whose text an example begins."""
    names = []
    for package, folder in (("roast_optim", ROOT / "roast_optim"), ("roast_optim.kernels", ROOT / "kernels")):
        for file in sorted(folder.rglob("*.py")):
            if ">>> " in file.read_text():
                parts = [package, *file.relative_to(folder).with_suffix("").parts]
                names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def examples(module: str) -> list[doctest.DocTest]:
    """The docstrings of a module that have examples."""
    return [test for test in doctest.DocTestFinder().find(importlib.import_module(module)) if test.examples]


@pytest.mark.parametrize("module", modules_with_examples())
def test_the_examples_of_a_module_do_what_they_show(module: str) -> None:
    found = examples(module)
    assert found, f"{module} has an example where no docstring is"
    for test in found:
        report: list[str] = []
        result = doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append)
        assert result.failed == 0, "".join(report)


def test_the_package_has_an_example() -> None:
    assert roast_optim.__name__ in {test.name for test in examples("roast_optim")}


@pytest.mark.parametrize(
    "thing", [RoastAdamW, AdversarialEmbedding, evaluate, selective_param_groups], ids=lambda thing: thing.__name__
)
def test_what_users_call_first_has_an_example(thing: Any) -> None:
    names = {test.name for test in examples(thing.__module__)}
    assert f"{thing.__module__}.{thing.__qualname__}" in names


def test_an_example_that_does_not_do_what_it_shows_fails() -> None:
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=lambda _: None).failed == 1


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """The site of the pages in a folder, as `make docs` builds that of the clone."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--quiet",
        "--fail-on-warning",
        "--keep-going",
        "-c",
        "docs",
        "-b",
        "html",
    ]
    return subprocess.run([*command, ".", "site"], cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A readme and an index, with the configuration of the clone."""
    for name in ("docs/conf.py", "docs/site_root/index.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "LICENSE").write_text("")
    (tmp_path / "docs" / "index.md").write_text("# Index\n\n## A part\n\n```{toctree}\n../README\n```\n")
    (tmp_path / "README.md").write_text(
        "# Readme\n\n[page](docs/index.md), [part](docs/index.md#a-part), [file](LICENSE), [here](#readme)\n"
    )
    return tmp_path


def test_links_to_pages_headings_and_files_work(pages: Path) -> None:
    done = build(pages)
    assert done.returncode == 0, done.stderr
    readme = (pages / "site" / "README.html").read_text()
    for link in ('href="docs/index.html"', 'href="docs/index.html#a-part"', 'href="#readme"', "LICENSE"):
        assert link in readme
    assert "docs/index.html" in (pages / "site" / "index.html").read_text()


def test_links_that_lead_nowhere_and_a_page_that_no_menu_has_are_errors(pages: Path) -> None:
    wrong = {
        "no_such_page": "[page](docs/no_such_page.md)",
        "no-such-part": "[heading](docs/index.md#no-such-part)",
        "no-such-heading": "[here](#no-such-heading)",
        "no_such_file": "[file](docs/no_such_file.py)",
        "no_such_picture": "![picture](no_such_picture.png)",
    }
    with (pages / "README.md").open("a") as readme:
        readme.write("\n" + "\n\n".join(wrong.values()) + "\n")
    (pages / "docs" / "forgotten.md").write_text("# Forgotten\n")
    done = build(pages)
    assert done.returncode != 0
    for name in (*wrong, "forgotten.md"):
        assert name in done.stderr
