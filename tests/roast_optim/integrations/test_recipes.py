"""Every recipe of docs/recipes runs as it stands and learns."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp

from tests.support.environments import output_of

RECIPES = Path(__file__).parents[3] / "docs" / "recipes"
WORDS = [("fine", "good"), ("great", "good"), ("lovely", "good"), ("poor", "bad"), ("dull", "bad"), ("weak", "bad")]
RUNS: dict[str, dict[str, Any]] = {
    "plain_loop": {},
    "with_trainer": {},
    "with_accelerate": {"cpu": True},
    "with_lightning": {},
    "sequence_to_sequence": {},
    "language_model": {},
}


def test_every_recipe_is_tested() -> None:
    assert {path.stem for path in RECIPES.glob("*.py")} == {*RUNS, "with_fsdp2", "tour"}


@pytest.mark.parametrize("name", RUNS)
def test_the_recipe_runs_and_learns(name: str) -> None:
    losses = runpy.run_path(str(RECIPES / f"{name}.py"))["main"](**RUNS[name])
    assert len(losses) >= 3
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.slow
def test_the_tour_trains_on_ones_own_file_and_measures_the_model(tmp_path: Path) -> None:
    """Labels in words, the byte order mark, line ends and semicolons of a spreadsheet, and a quote in a text."""
    rows = [
        f'"a ""{word}"" {thing}; yes";{label}' for thing in ("film", "book", "play", "song") for word, label in WORDS
    ]
    file = tmp_path / "mine.csv"
    file.write_bytes("\r\n".join(["review;stars", *rows, ""]).encode("utf-8-sig"))
    printed = output_of([sys.executable, RECIPES / "tour.py", file, "--label-column", "stars"], tmp_path)
    assert "18 rows to train on, 6 to test; labels: bad, good" in printed
    losses = [float(loss) for loss in re.findall(r"task loss ([\d.]+)", printed)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((tmp_path / "my-model" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}


@pytest.mark.slow
def test_the_tour_needs_no_file(tmp_path: Path) -> None:
    printed = output_of([sys.executable, RECIPES / "tour.py"], tmp_path, TMPDIR=str(tmp_path))
    assert "54 rows to train on, 18 to test; labels: negative, positive" in printed
    (model,) = tmp_path.glob("*/my-model")
    assert (model.parent / "example.csv").read_bytes().startswith(b"\xef\xbb\xbftext,label\r\n")


def test_the_language_model_learns_with_adapters() -> None:
    losses = runpy.run_path(str(RECIPES / "language_model.py"))["main"](lora=True)
    assert losses[-1] < losses[0]


@pytest.mark.distributed
def test_the_recipe_for_several_processes_runs_learns_and_saves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(RECIPES / "with_fsdp2.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    losses = [float(loss) for loss in re.findall(r"task loss ([\d.]+)", result.stdout)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    saved = dcp.FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    assert any(name.endswith("rank_code") for name in saved)
