"""What pyproject.toml promises is what tests/versions.py tests, here and in the hosted workflow."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import versions
from tests.versions import EVERYTHING, HEAD, VERSIONS, Versions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
LOWEST = VERSIONS[0]
RELEASES = {"Python": "3.10.1", "torch": "2.6.0", "triton": "3.2.0", "numpy": "2.2.6"}
OUTCOMES = [{"outcome": each} for each in ("passed", "passed", "failed", "error", "skipped", "xfailed")]


def floors() -> dict[str, str]:
    """The lowest releases that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        f"python{project['requires-python']}",
        *project["dependencies"],
        *project["optional-dependencies"]["triton"],
    ]
    return {name: floor for name, _, floor in (requirement.partition(">=") for requirement in asked)}


def test_the_floors_of_the_project_are_the_lowest_versions_that_are_tested() -> None:
    tested = {"python": LOWEST.python, "torch": LOWEST.torch, "triton": LOWEST.triton}
    promised = floors()
    assert promised.keys() == tested.keys()
    for name, floor in promised.items():
        assert re.sub(r"(\.0)+$", "", tested[name] or "") == re.sub(r"(\.0)+$", "", floor), name
    assert f"torch {promised['torch']} or newer" in (ROOT / "README.md").read_text()
    said = "torch {torch}, triton {triton} and Python {python} or newer".format(**promised)
    assert said in (ROOT / "docs" / "guarantees.md").read_text()


def test_the_hosted_workflow_runs_the_lowest_and_the_newest_versions() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    chosen = {each["name"]: each["python"] for each in jobs["versions"]["strategy"]["matrix"]["include"]}
    assert chosen == {each.name: each.python for each in (VERSIONS[0], VERSIONS[-1])}
    (command,) = [step["run"] for step in jobs["versions"]["steps"] if "tests.versions" in step.get("run", "")]
    assert command == "python -m tests.versions '${{ matrix.name }}'"
    wheels = {each["release"]: each for each in jobs["torch"]["strategy"]["matrix"]["include"]}
    assert wheels["lowest"] == {"release": "lowest", "torch": f"torch=={LOWEST.torch}", "python": LOWEST.python}


def test_an_environment_chooses_its_own_releases_and_takes_the_others_from_the_constraints() -> None:
    kept = versions.without(
        ("torch", "numpy"), 'torch==2.13.0\nnumpy==2; python_version >= "3.11"\ntorchmetrics==1\n#\n'
    )
    assert kept == "torchmetrics==1\n#\n"
    assert LOWEST.requirements() == [f"torch=={LOWEST.torch}", f"triton=={LOWEST.triton}", f"numpy=={LOWEST.numpy}"]
    assert Versions("newest", "3.14", None, None).requirements() == ["torch", "triton", "numpy"]


def test_in_the_interpreter_run_those_of_the_tests_that_are_for_it() -> None:
    assert versions.in_the_interpreter([]) == [*versions.INTERPRETED]
    assert versions.in_the_interpreter(["tests/kernels/triton", "tests/docs"]) == ["tests/kernels/triton"]
    assert versions.in_the_interpreter(["tests/roast_optim"]) == [*versions.INTERPRETED[1:]]
    assert all((ROOT / each).exists() for each in versions.INTERPRETED)


def test_a_line_is_written_into_the_table_in_the_place_of_the_one_before() -> None:
    def document(*rows: str) -> str:
        return "\n".join(["before", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|", *rows, "", "after"]) + "\n"

    every = versions.row("lowest", RELEASES, [], OUTCOMES)
    assert every == ["lowest", "3.10.1", "2.6.0", "3.2.0", "2.2.6", EVERYTHING, "2", "2", "2"]
    some = versions.row("lowest", RELEASES, ["tests/kernels", "tests/docs"], OUTCOMES[:1] * 1234)
    assert some[5:] == ["`kernels`, `docs`", "1,234", "0", "0"]
    first, second = (f"| {' | '.join(each)} |" for each in (every, some))
    assert versions.with_row(document(), every) == document(first)
    assert versions.with_row(document(second), every) == document(first, second)
    old = first.replace("| 2 | 2 | 2 |", "| 0 | 0 | 9 |")
    assert versions.with_row(document(old, second), every) == document(first, second)
    newest = f"| {' | '.join(['newest torch', *every[1:]])} |"
    assert versions.with_row(document(newest), every) == document(first, newest)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """main() makes no environment, and finds these outcomes; it writes into the file that is returned."""

    class Made:
        def __init__(self, chosen: Versions, folder: Path) -> None:
            if chosen.name == "newest Python":
                raise versions.UnavailableError("there is no python3.14: put one on the PATH")

        def test(self, tests: Any, processes: int) -> list[dict[str, str]]:
            return [{"outcome": "passed"}, {"outcome": "failed", "test": "tests/a.py::b", "reason": "no"}]

        def releases(self) -> dict[str, str]:
            return RELEASES

    document = tmp_path / "guarantees.md"
    document.write_text(f"| {' | '.join(HEAD)} |\n|---|\n")
    monkeypatch.setattr(versions, "Environment", Made)
    monkeypatch.setattr(versions, "DOCUMENT", document)
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    return document


def test_what_cannot_be_run_and_what_fails_is_said_and_fails(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert versions.main(["lowest", "newest Python", "--folder", str(tmp_path / "made"), "--record"]) == 1
    said = capsys.readouterr()
    assert "lowest: failed tests/a.py::b: no" in said.out
    assert "newest Python: not run here: there is no python3.14: put one on the PATH" in said.err
    assert [*(tmp_path / "made").iterdir()] == []
    assert environment.read_text().splitlines()[2:] == [
        f"| lowest | 3.10.1 | 2.6.0 | 3.2.0 | 2.2.6 | {EVERYTHING} | 1 | 1 | 0 |"
    ]


def test_an_interpreter_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(versions.UnavailableError, match=r"there is no python3\.10: put one on the PATH"):
        versions._interpreter("3.10")


@pytest.mark.usefixtures("environment")
def test_an_environment_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        versions.main(["oldest"])
    assert "there is no environment 'oldest'; there are 'lowest', " in capsys.readouterr().err
