"""runs.jsonl: appended at once, never twice, never rewritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.robustness.errors import UserError
from benchmarks.robustness.runs import RunStore, read_runs


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
