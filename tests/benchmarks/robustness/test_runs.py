"""runs.jsonl: appended at once, never twice, never rewritten."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.robustness.runs import IDENTITY, RunStore, read_runs, succeeded
from roast_optim.evaluation.errors import UserError


def run(**changes: Any) -> dict[str, Any]:
    return {
        "purpose": "final", "task": "sentiment", "method": "plain", "model": "tiny", "seed": 0,
        "options": {"learning_rate": 1e-5, "betas": [0.9, 0.98]}, "train_rows": 64, "epochs": 3,
        "acc_in": 0.9, "acc_shift": 0.8, "acc_adv": None, "ece": 0.05, "auroc": 0.7, "per_set": {},
        "seconds": 1.5, "torch": "2.13.0", "commit": None,
        **changes,
    }  # fmt: skip


def test_a_run_is_on_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "new" / "runs.jsonl")
    store.append(run())
    assert read_runs(store.path) == [run()]
    store.append(run(seed=1))
    assert read_runs(store.path) == [run(), run(seed=1)]


def test_a_recorded_run_is_found_again_and_cannot_be_added_twice(tmp_path: Path) -> None:
    RunStore(tmp_path / "runs.jsonl").append(run())
    store = RunStore(tmp_path / "runs.jsonl")
    assert store.find(run(acc_in=0.1, seconds=9.0)) == run()
    with pytest.raises(ValueError, match="recorded already"):
        store.append(run(acc_in=0.1))
    assert len(read_runs(store.path)) == 1


def test_a_number_is_the_same_setting_however_it_is_written(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    store.append(run(options={"beta": 10, "rescale": True}))
    assert store.find(run(options={"beta": 10.0, "rescale": True})) is not None
    assert store.find(run(options={"beta": 10.0, "rescale": 1})) is None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"method": "roast"}, {"task": "entailment"}, {"model": "other"}, {"purpose": "tuning"},
        {"train_rows": 32}, {"epochs": 1}, {"options": {"learning_rate": 2e-5, "betas": [0.9, 0.98]}},
    ],
)  # fmt: skip
def test_another_setting_is_another_run(tmp_path: Path, change: dict[str, Any]) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    store.append(run())
    assert store.find(run(**change)) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken\n", "not JSON"),
        (b"\xff\n", "not JSON"),
        (b"\n", "not JSON"),
        (b"[1, 2]\n", "it is a list"),
        (b'{"purpose": "final"}\n', "key 'task' is missing"),
        (json.dumps(run(seed="one")).encode() + b"\n", "seed is 'one'"),
        (json.dumps(run(seed=True)).encode() + b"\n", "seed is True"),
        (json.dumps(run(acc_in=None)).encode() + b"\n", "acc_in is None"),
        (json.dumps(run(ece=float("nan"))).encode() + b"\n", "not JSON"),
        (json.dumps(run(per_set={"imdb": 0.8})).encode() + b"\n", "per_set has no role of 'imdb'"),
        (json.dumps(run(per_set={"imdb": {"role": "shift", "rows": 4}})).encode() + b"\n", "no accuracy of 'imdb'"),
        (json.dumps(run(purpose="fun")).encode() + b"\n", "purpose is 'fun'"),
        (json.dumps(run()).encode(), "the line has no end"),
    ],
)
def test_a_broken_or_foreign_line_is_named_and_nothing_is_touched(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "runs.jsonl"
    content = json.dumps(run(seed=5)).encode() + b"\n" + line
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        RunStore(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert path.read_bytes() == content


def test_a_value_that_is_not_json_is_never_written(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    with pytest.raises(ValueError, match="Out of range float"):
        store.append(run(acc_in=float("nan")))
    with pytest.raises(ValueError, match="key 'ece' is missing"):
        store.append({key: value for key, value in run().items() if key != "ece"})
    assert not store.path.exists()


def test_a_full_disk_leaves_no_half_line_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    store.append(run())
    written = store.path.read_bytes()
    real = os.write

    def short(descriptor: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device\); nothing was added"):
        store.append(run(seed=1))
    assert store.path.read_bytes() == written
    monkeypatch.setattr(os, "write", real)
    store.append(run(seed=1))
    assert len(read_runs(store.path)) == 2


def test_what_is_written_in_parts_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    store = RunStore(tmp_path / "runs.jsonl")
    store.append(run())
    assert read_runs(store.path) == [run()]


@pytest.mark.parametrize("place", ["a file/runs.jsonl", "a folder"])
def test_an_output_that_cannot_be_written_is_noticed_before_any_run(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "a folder").mkdir()
    with pytest.raises(UserError, match=r"cannot be written .*; give another --output"):
        RunStore(tmp_path / place)


def test_a_run_on_other_data_or_weights_is_another_run(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    store.append(run(content={"data": "aa", "weights": "bb"}))
    assert store.find(run(content={"data": "aa", "weights": "bb"}))
    assert store.find(run(content={"data": "ab", "weights": "bb"})) is None
    assert store.find(run(content={"data": "aa", "weights": "bc"})) is None
    store.append(run(content={"data": "ab", "weights": "bb"}))


def test_a_record_from_before_content_was_kept_is_found_whatever_it_was(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    store.append(run())
    assert store.find(run(content={"data": "aa", "weights": "bb"})) == run()
    assert store.find(run(protocol=2)) is None


def test_a_model_is_the_same_from_the_hub_and_from_a_folder(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    store.append(run(model="someone/a-model"))
    assert store.find(run(model="/data/models/a-model"))
    assert store.find(run(model="someone/another-model")) is None


def test_a_failed_run_needs_no_scores_and_is_not_done_again(tmp_path: Path) -> None:
    failed = {key: run()[key] for key in IDENTITY} | {"failed": "the loss is nan at step 3"}
    store = RunStore(tmp_path / "runs.jsonl")
    store.append(failed)
    assert store.find(run()) == failed
    assert succeeded([failed, run(seed=1)]) == [run(seed=1)]


def test_two_stores_may_add_to_one_file(tmp_path: Path) -> None:
    first, second = RunStore(tmp_path / "runs.jsonl"), RunStore(tmp_path / "runs.jsonl")
    first.append(run())
    second.append(run(seed=1))
    with pytest.raises(ValueError, match="recorded already"):
        second.append(run())
    assert [row["seed"] for row in read_runs(first.path)] == [0, 1]


def test_a_message_fits_a_screen_whatever_was_given(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(run(seed="y" * 300_000)) + "\n")
    with pytest.raises(UserError, match=r"seed is 'yyy.*characters \.\.\..*give another --output") as caught:
        RunStore(path)
    assert len(str(caught.value)) < 1100
