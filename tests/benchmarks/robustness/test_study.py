"""The command from its arguments to its files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.robustness import __main__ as command
from benchmarks.robustness import predictions, study
from benchmarks.robustness.runs import KEYS, read_runs


def arguments(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "--model", str(model), "--data", str(data), "--output", str(output), "--epochs", "1", "--attack-rows", "6",
        "--max-length", "32", "--set", "learning_rate=1e-3", *more,
    ]  # fmt: skip


def run(model: Path, data: Path, output: Path, *more: str) -> int:
    return command.main(arguments(model, data, output, *more))


def test_a_study_leaves_runs_results_and_a_picture(
    model_folder: Path, sentiment_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model_folder, sentiment_folder, tmp_path / "out", "--methods", "plain", "roast", "--seeds", "2") == 0
    rows = read_runs(tmp_path / "out" / "runs.jsonl")
    assert [(row["method"], row["seed"]) for row in rows] == [("plain", 0), ("roast", 0), ("plain", 1), ("roast", 1)]
    for row in rows:
        assert set(KEYS) <= set(row)
        assert set(row["per_set"]) == {"test", "elsewhere", "tricky", "character_swaps", "strange"}
        assert all(0 <= row[key] <= 1 for key in ("acc_in", "acc_shift", "acc_adv", "ece", "auroc"))
        assert row["options"]["learning_rate"] == 1e-3
        assert row["acc_adv"] == pytest.approx(
            (row["per_set"]["tricky"]["accuracy"] + row["per_set"]["character_swaps"]["accuracy"]) / 2
        )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    plain, roast = results["methods"]["plain"], results["methods"]["roast"]
    assert plain["acc_in"] == pytest.approx((rows[0]["acc_in"] + rows[2]["acc_in"]) / 2)
    closed = (roast["acc_shift"] - plain["acc_shift"]) / (1 - plain["acc_shift"])
    assert roast["relative_improvement"]["acc_shift"] == pytest.approx(closed)
    assert (tmp_path / "out" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "over plain" in printed
    assert f"{100 * plain['acc_in']:.1f}" in printed


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A list to which every run that is really done is added."""
    done: list[tuple[str, int]] = []
    original = study.run_once

    def counted(settings: Any, suite: Any, method: Any, seed: int, observer: Any) -> dict[str, Any]:
        done.append((method.name, seed))
        return original(settings, suite, method, seed, observer)

    monkeypatch.setattr(study, "run_once", counted)
    return done


def test_a_run_is_never_done_twice(
    model_folder: Path, sentiment_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = count_runs(monkeypatch)
    folder, out = sentiment_folder, tmp_path / "out"
    assert run(model_folder, folder, out, "--methods", "plain") == 0
    assert run(model_folder, folder, out, "--methods", "plain", "wconsol", "--seeds", "2") == 0
    assert done == [("plain", 0), ("wconsol", 0), ("plain", 1), ("wconsol", 1)]
    assert run(model_folder, folder, out, "--methods", "plain", "--set", "learning_rate=2e-3") == 0
    assert len(done) == 5
    assert run(model_folder, folder, out, "--methods", "plain") == 0
    assert len(done) == 5


def test_restart_keeps_the_old_runs_under_another_name(
    model_folder: Path, sentiment_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for _ in range(3):
        assert run(model_folder, sentiment_folder, out, "--methods", "plain", "--restart") == 0
    assert sorted(each.name for each in out.glob("runs*")) == ["runs.jsonl", "runs.jsonl.1", "runs.jsonl.2"]
    scores = [{**read_runs(each)[0], "seconds": 0} for each in out.glob("runs*")]
    assert scores[0] == scores[1] == scores[2]


def test_stopping_loses_only_the_run_that_was_stopped(
    model_folder: Path, sentiment_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    original = predictions.predict_suite

    def interrupted(classifier: Any, *rest: Any) -> predictions.Predictions:
        if (out / "runs.jsonl").exists():
            raise KeyboardInterrupt
        return original(classifier, *rest)

    monkeypatch.setattr(study, "predict_suite", interrupted)
    assert run(model_folder, sentiment_folder, out, "--methods", "plain", "wconsol") == 130
    assert [row["method"] for row in read_runs(out / "runs.jsonl")] == ["plain"]
    assert sorted(each.name for each in out.iterdir()) == ["predictions", "runs.jsonl"]
    assert len([*(out / "predictions").iterdir()]) == 1
    monkeypatch.setattr(study, "predict_suite", original)
    assert run(model_folder, sentiment_folder, out, "--methods", "plain", "wconsol") == 0
    assert [row["method"] for row in read_runs(out / "runs.jsonl")] == ["plain", "wconsol"]


def test_tuning_sees_the_validation_set_only(model_folder: Path, sentiment_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(model_folder, sentiment_folder, out, "--methods", "plain", "--purpose", "tuning") == 0
    (row,) = read_runs(out / "runs.jsonl")
    assert set(row["per_set"]) == {"dev", "character_swaps"}
    assert row["acc_shift"] is None
    assert row["auroc"] is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "toast"], "method 'toast' is unknown"),
        (["--set", "alpha"], "--set 'alpha': write KEY=VALUE or METHOD.KEY=VALUE"),
        (["--set", "toast.alpha=1"], "method 'toast' is unknown"),
        (["--set", "plain.alpha=1"], "plain has no option 'alpha'"),
        (["--set", "speed=1"], "has no option 'speed'; known: "),
        (["--task", "entailment"], "no set with role train"),
        (["--train-set", "other"], "train set 'other'"),
        (["--data", "nowhere"], "data 'nowhere': give 'demo' or 'hub' alone, or folders"),
        (["--model", "nowhere/at/all"], "model 'nowhere/at/all' cannot be loaded"),
        (["--set", "roast.alpha=2"], "alpha"),
        (["--set", "roast.step_size=big"], "step_size"),
    ],
)
def test_what_cannot_be_used_is_named_without_a_traceback(
    model_folder: Path,
    sentiment_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert run(model_folder, sentiment_folder, tmp_path / "out", *more) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_foreign_line_stops_the_study_before_any_run(
    model_folder: Path, sentiment_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "runs.jsonl").write_text('{"someone": "else"}\n')
    assert run(model_folder, sentiment_folder, out) == 2
    assert "runs.jsonl:1: not a run of this study" in capsys.readouterr().err
    assert (out / "runs.jsonl").read_text() == '{"someone": "else"}\n'


def test_a_preset_is_only_a_set_of_defaults() -> None:
    settings = command.read_settings(["--preset", "demo", "--epochs", "7", "--set", "roast.alpha=0.5"])
    demo = command.read_settings(["--preset", "demo"])
    assert (settings.epochs, settings.data, settings.methods) == (7, ("demo",), ("plain", "roast"))
    assert settings.changes == (*demo.changes, "roast.alpha=0.5")


def test_the_environment_names_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROAST_DATA", os.pathsep.join(["some/folder", "another"]))
    assert command.read_settings([]).data == ("some/folder", "another")
    assert command.read_settings(["--data", "hub"]).data == ("hub",)
    assert command.read_settings(["--preset", "demo"]).data == ("demo",)
    monkeypatch.delenv("ROAST_DATA")
    assert command.read_settings([]).data == ("demo",)


def test_a_diverging_run_is_recorded_and_the_others_go_on(
    model_folder: Path, sentiment_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--methods", "plain", "lp_ft", "--set", "plain.learning_rate=1e30", "lp_ft.learning_rate=1e-3")
    assert run(model_folder, sentiment_folder, tmp_path / "out", *more) == 0
    rows = read_runs(tmp_path / "out" / "runs.jsonl")
    assert [(row["method"], "failed" in row) for row in rows] == [("plain", True), ("lp_ft", False)]
    assert "plain, seed 0 failed: " in capsys.readouterr().out
    assert run(model_folder, sentiment_folder, tmp_path / "out", *more) == 0
    assert len(read_runs(tmp_path / "out" / "runs.jsonl")) == 2


def test_where_all_runs_diverge_the_command_fails_with_the_reason(
    model_folder: Path, sentiment_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--methods", "plain", "--set", "learning_rate=1e30")
    assert run(model_folder, sentiment_folder, tmp_path / "out", *more) == 2
    assert "all runs failed; the first: " in capsys.readouterr().err


def test_a_run_is_not_found_again_once_a_text_or_a_weight_has_changed(
    model_folder: Path, sentiment_folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    out = tmp_path / "out"

    def recorded() -> int:
        assert run(model, sentiment_folder, out, "--methods", "plain") == 0
        return len(read_runs(out / "runs.jsonl"))

    assert recorded() == recorded() == 1
    test = sentiment_folder / "test.tsv"
    test.write_text(test.read_text().replace("film", "story"))
    assert recorded() == 2
    weights = load_file(model / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][5, 3] += 1e-3
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert recorded() == recorded() == 3
