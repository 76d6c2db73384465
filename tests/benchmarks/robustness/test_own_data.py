"""The study on files of one's own: any labels, any columns, and what cannot be used is named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.robustness import __main__ as command
from benchmarks.robustness.runs import read_runs
from benchmarks.robustness.sources.files import OWN_DATA, DataFiles, load_files
from roast_optim.evaluation.errors import UserError
from tests.support.tiny_classifier import sentences

VERDICTS = ("thumbs down", "thumbs up")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Files of reviews with labels that no preset knows, CRLF and a byte order mark."""
    made = {}
    for seed, name in enumerate(("train", "validation", "in_distribution", "shift", "adversarial"), 1):
        made[name] = tmp_path / f"{name}.csv"
        with made[name].open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["review", "verdict"])
            writer.writerows([text, VERDICTS[label]] for text, label in sentences(24 + seed, seed))
    made["anomaly"] = tmp_path / "anomaly.txt"
    made["anomaly"].write_text("film that this\n" * 9)
    return made


def data_files(files: dict[str, Path], **changes: Any) -> DataFiles:
    several = {name: (str(files[name]),) for name in ("shift", "adversarial", "anomaly")}
    one = {name: str(files[name]) for name in ("train", "validation", "in_distribution")}
    return DataFiles(**{**one, **several, "label_column": "verdict", **changes})


def arguments(files: dict[str, Path], *more: str) -> list[str]:
    given = [part for name, path in files.items() for part in (f"--{name.replace('_', '-')}", str(path))]
    return [*given, "--label-column", "verdict", *more]


def test_a_study_on_files_ends_with_a_recommendation(
    model_folder: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (
        "--model", str(model_folder), "--methods", "plain", "wconsol", "--seeds", "2", "--epochs", "1",
        "--attack-rows", "6", "--output", str(tmp_path / "out"), "--set", "learning_rate=1e-3",
    )  # fmt: skip
    assert command.main(arguments(files, *more)) == 0
    rows = read_runs(tmp_path / "out" / "runs.jsonl")
    assert [(row["task"], row["method"], row["seed"]) for row in rows] == [
        (OWN_DATA, method, seed) for seed in (0, 1) for method in ("plain", "wconsol")
    ]
    assert list(rows[0]["per_set"]) == ["in_distribution", "shift", "adversarial", "character_swaps", "anomaly"]
    assert set(rows[0]["per_set"]["shift"]["groups"]["label"]) == set(VERDICTS)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.endswith(results["recommendation"])
    assert "on your data" in results["recommendation"]
    assert results["settings"]["files"]["train"] == str(files["train"])
    assert command.main(arguments(files, *more)) == 0
    assert len(read_runs(tmp_path / "out" / "runs.jsonl")) == 4


def test_another_text_makes_other_runs(model_folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    more = (
        "--model", str(model_folder), "--methods", "plain", "--seeds", "1", "--epochs", "1", "--attack-rows", "0",
        "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert command.main(arguments(files, *more)) == 0
    files["shift"].write_text(files["shift"].read_text(encoding="utf-8-sig").replace("film", "story"))
    assert command.main(arguments(files, *more)) == 0
    assert len(read_runs(tmp_path / "out" / "runs.jsonl")) == 2


def test_labels_and_texts_are_those_of_the_files(files: dict[str, Path]) -> None:
    suite, notes = load_files(data_files(files))
    assert suite.task.labels == VERDICTS
    assert notes == []
    assert suite.train["label"][:] == [label for _, label in sentences(25, 1)]
    assert suite.in_distribution.texts() == [(text,) for text, _ in sentences(27, 3)]
    assert [(each.name, each.role, len(each.rows)) for each in suite.others] == [
        ("shift", "shift", 28), ("adversarial", "adversarial", 29), ("anomaly", "anomaly", 9),
    ]  # fmt: skip
    assert suite.source.startswith("files-")


def write_pairs(files: dict[str, Path]) -> None:
    for name in ("train", "validation", "in_distribution", "shift", "adversarial"):
        files[name].write_text("premise,hypothesis,verdict\na,b,3\nc,d,-1\ne,f,10\n")


def test_pairs_and_numbers_as_labels(files: dict[str, Path]) -> None:
    write_pairs(files)
    suite, _ = load_files(data_files(files))
    assert suite.task.labels == ("-1", "3", "10")
    assert suite.train["label"][:] == [1, 0, 2]
    assert suite.validation.texts() == [("a", "b"), ("c", "d"), ("e", "f")]
    assert suite.role("anomaly")[0].texts()[0] == ("film that this",)


def test_anomalies_may_be_pairs_too(files: dict[str, Path], tmp_path: Path) -> None:
    write_pairs(files)
    strange = tmp_path / "strange.csv"
    strange.write_text("premise,hypothesis\nx,y\n")
    suite, _ = load_files(data_files(files, anomaly=(str(strange),)))
    assert suite.role("anomaly")[0].texts() == [("x", "y")]


def test_a_label_that_is_never_tested_is_told(files: dict[str, Path]) -> None:
    with files["train"].open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(["so so", "shrug"])
    suite, notes = load_files(data_files(files))
    assert suite.task.labels == ("shrug", *VERDICTS)
    assert notes == ["in_distribution has no row of the label shrug"]


def number_for_a_name(files: dict[str, Path]) -> str:
    files["shift"].write_text("review,verdict\na,thumbs up\nb,1\n")
    return "shift.csv:3: unknown label '1'; "


def label_not_in_training(files: dict[str, Path]) -> str:
    files["validation"].write_text("review,verdict\na,thumbs up\nb,thumbs down\nc,shrug\n")
    return "validation.csv:4: unknown label 'shrug'; "


def one_class_in_training(files: dict[str, Path]) -> str:
    files["train"].write_text("review,verdict\na,thumbs up\nb,thumbs up\n")
    return "train.csv:2: all rows from here to "


def empty_text(files: dict[str, Path]) -> str:
    files["train"].write_text("review,verdict\na,thumbs up\n,thumbs down\n")
    return "train.csv:3: the column 'review' is empty"


@pytest.mark.parametrize("spoil", [number_for_a_name, label_not_in_training, one_class_in_training, empty_text])
def test_what_cannot_be_used_is_named_with_file_and_line(
    files: dict[str, Path], spoil: Callable[[dict[str, Path]], str]
) -> None:
    message = spoil(files)
    with pytest.raises(UserError) as caught:
        load_files(data_files(files))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--train", "a.csv"], "--train is for one's own data, which needs --validation and --in-distribution too"),
        (["--shift", "a.csv"], "--shift is for one's own data, which needs --train and --validation and --in-dist"),
        (["--train", "a.csv", "--validation", "b.csv", "--in-distribution", "c.csv"], "a.csv: there is no such file"),
    ],
)
def test_files_that_are_missing_are_named(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main([*given, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_files_come_with_defaults_of_their_own_which_what_is_written_out_replaces(files: dict[str, Path]) -> None:
    settings = command.read_settings(arguments(files, "--seeds", "7", "--set", "learning_rate=1e-5"))
    assert settings.task == OWN_DATA
    assert settings.seeds == 7
    assert "plain" in settings.methods
    assert settings.changes[-1] == "learning_rate=1e-5"
    assert command.read_settings(arguments(files, "--preset", "smoke")).purpose == "smoke"
