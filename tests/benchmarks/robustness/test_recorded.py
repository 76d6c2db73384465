"""The commands in results/README.md and the records tell of the same runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.robustness import recorded
from benchmarks.robustness.runs import read_runs

FOLDER = "benchmarks/robustness/results/entailment-long"


def test_every_recorded_run_is_named_by_a_command_and_every_command_is_recorded() -> None:
    assert [*recorded.problems(recorded.RESULTS)] == []


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of one folder's records, with the commands that name them."""
    results = tmp_path / "benchmarks" / "robustness" / "results"
    shutil.copytree(recorded.RESULTS / "entailment-long", tmp_path / FOLDER)
    blocks = (recorded.RESULTS / "README.md").read_text().split("```\n")
    (results / "README.md").write_text(
        "```\n".join(["", next(each for each in blocks if "results/entailment-long" in each), ""])
    )
    assert [*recorded.problems(results)] == []
    return results


def test_a_record_that_no_command_names_is_told(results: Path) -> None:
    path = results / "entailment-long" / "runs.jsonl"
    line = next(each for each in path.read_text().splitlines() if '"purpose": "final"' in each)
    path.write_text(path.read_text() + line.replace('"seed": 0', '"seed": 7') + "\n")
    assert len(read_runs(path)) > 1
    (problem,) = recorded.problems(results)
    assert problem.startswith("no command: ")
    assert "seed 7" in problem


def test_a_run_that_a_command_names_and_nobody_recorded_is_told(results: Path) -> None:
    readme = results / "README.md"
    readme.write_text(readme.read_text().replace("--seeds 3", "--seeds 4"))
    found = [*recorded.problems(results)]
    assert len(found) == 5  # methods of the command
    assert all(each.startswith("not recorded: ") and " seed 3 of " in each for each in found)


def test_a_command_is_read_over_several_lines_and_a_template_is_filled_from_a_record() -> None:
    lines = (
        "```",
        "python -m benchmarks.robustness --methods METHOD \\",
        "--set KEY=VALUE ... --epochs EPOCHS",
        "ls",
        "```",
    )
    text = "\n".join((*lines, ""))
    (words,) = recorded.commands(text)
    assert recorded.is_template(words)
    row = {"method": "plain", "epochs": 2, "options": {"learning_rate": 1e-4, "data": "x"}}
    assert recorded.filled(words[1:], row) == ["--methods", "plain", "--set", "learning_rate=0.0001", "--epochs", "2"]
