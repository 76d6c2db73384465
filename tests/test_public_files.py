"""What the outside reads about the project: the version, the changelog, the citation, the workflows and the forms."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import roast_optim

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_version_stands_in_one_place() -> None:
    for name in ("pyproject.toml", "setup.py", "CITATION.cff", "docs/conf.py", "README.md"):
        assert roast_optim.__version__ not in (ROOT / name).read_text(), name


def test_the_changelog_has_its_sections_in_order() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings[1:]]
    assert all(released), headings
    versions = [tuple(map(int, match.groups()[:3])) for match in released if match]
    assert versions == sorted(versions, reverse=True)
    kinds = re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(kinds) <= KINDS


def test_the_citation_names_the_software_and_the_paper_with_its_authors() -> None:
    citation = read("CITATION.cff")
    (paper,) = citation["references"]
    assert citation["title"] == "roast_optim"
    assert paper["title"].startswith("RoAST: Robustifying Language Models")
    assert len(paper["authors"]) == 10
    assert paper["url"] in (ROOT / "README.md").read_text()


def test_the_hook_runs_the_linters_of_make_lint_and_nothing_else() -> None:
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == ["make lint"]


def test_every_file_of_the_tests_with_torch_alone_is_there() -> None:
    files = (ROOT / "tests" / "with_torch_alone.txt").read_text().split()
    assert files == sorted(set(files))
    assert [file for file in files if not (ROOT / file).is_file()] == []


def commands(job: dict[str, Any]) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_the_hosted_run_has_the_targets_of_the_one_here() -> None:
    here = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    hosted = commands(read(".github/workflows/ci.yml")["jobs"]["check"]).splitlines()
    assert [line for line in hosted if line.startswith("make ")] == here
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {shlex.split(line)[1] for line in here} <= set(targets)


def test_the_lowest_torch_of_the_hosted_run_is_the_lowest_that_the_package_takes() -> None:
    required = [line for line in metadata("roast-optim").get_all("Requires-Dist", []) if line.startswith("torch>=")]
    matrix = read(".github/workflows/ci.yml")["jobs"]["torch"]["strategy"]["matrix"]
    (lowest,) = [entry["torch"] for entry in matrix["include"] if entry["release"] == "lowest"]
    assert [lowest] == [line.replace(">=", "==") + ".0" for line in required]


def test_nothing_is_published_that_was_not_tested() -> None:
    jobs = read(".github/workflows/release.yml")["jobs"]
    assert set(jobs["publish"]["needs"]) == jobs.keys() - {"publish"}
    assert "github.ref_type == 'tag'" in jobs["publish"]["if"]
    assert "pytest" in commands(jobs["source"])
    assert "cibuildwheel" in commands(jobs["wheel"])  # which runs test-command
    assert "test-command = [" in (ROOT / "pyproject.toml").read_text()
    platforms = {entry["platform"] for entry in jobs["wheel"]["strategy"]["matrix"]["include"]}
    assert platforms == {"manylinux_x86_64", "manylinux_aarch64", "macosx_arm64"}


@pytest.mark.parametrize("form", [form for form in FORMS if form.name != "config.yml"], ids=lambda form: form.stem)
def test_every_question_of_a_form_has_a_name_of_its_own(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    assert content["name"]
    assert content["description"]
    names = [question["id"] for question in content["body"]]
    assert len(names) == len(set(names)) > 0
    assert all(question["attributes"]["label"] for question in content["body"])
