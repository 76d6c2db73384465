"""Successive halving, the choice of settings, and the looks: what is due follows from what is recorded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.robustness import frozen_attack, looks, protocol
from benchmarks.robustness.data import Suite
from benchmarks.robustness.errors import DivergedError
from benchmarks.robustness.look import look
from benchmarks.robustness.protocol import Protocol, claim, work
from benchmarks.robustness.regimes import Regime
from benchmarks.robustness.runs import read_runs
from benchmarks.robustness.trials import Derived, Trial, by_rate
from benchmarks.robustness.trials_table import trials_table
from roast_optim.evaluation.errors import UserError

RATES = (1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3)


@pytest.fixture
def regime(model_folder: Path) -> Regime:
    return Regime(
        task="sentiment", train_rows=32, epochs=1, domains=("elsewhere", "tricky"), rows=10, attack_rows=4,
        model=str(model_folder),
        trials={"plain": by_rate("plain", *RATES), "lp_ft": by_rate("lp_ft", *RATES)}, precision="float32",
        others={
            "plain (longer)": Trial("plain", {"learning_rate": 1e-3}, epochs=2),
            "plain (rate of lp_ft)": Derived("lp_ft", method="plain"),
            "lp_ft (shorter)": Derived("lp_ft", {"probing_epochs": 2}),
        },
    )  # fmt: skip


@pytest.fixture
def made(
    regime: Regime, sentiment_folder: Path, tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> Protocol:
    """The protocol of a tiny regime; of its validation set no text is really attacked."""
    monkeypatch.setattr(frozen_attack, "FOLDER", tmp_path / "frozen")
    (tmp_path / "frozen").mkdir()
    kept = {"set": "dev", "rows": 20, "digest": frozen_attack.digest(suite.validation), "swaps": [[0, 0, 1]]}
    (tmp_path / "frozen" / "dev.json").write_text(json.dumps(kept))
    return Protocol(regime, [str(sentiment_folder)], tmp_path / "out")


def settle(made: Protocol, accuracy: dict[float, float]) -> list[tuple[str, float, int]]:
    """Record whatever is due, with an accuracy by learning rate, and return what it was."""
    done = []
    for due in made.trials_due():
        rate = due.method.recipe.learning_rate
        scores = {"acc_in": 0.9, "acc_shift": accuracy[rate], "acc_adv": 0.5, "ece": 0.1, "auroc": 0.5}
        made.store.append({**due.identity, **scores, "per_set": {}, "seconds": 1.0, "torch": "2", "commit": None})
        done.append((due.method.name, rate, due.identity["seed"]))
    return done


def test_six_settings_then_the_best_three_then_the_best_two(made: Protocol) -> None:
    accuracy = {0.001: 0.6, 0.002: 0.5, 0.003: 0.8, 0.004: 0.7, 0.005: 0.4, 0.006: 0.3}
    assert settle(made, accuracy) == [(m, rate, 100) for m in ("plain", "lp_ft") for rate in RATES]
    assert made.chosen("plain") is None
    assert settle(made, accuracy)[:3] == [("plain", 0.003, 101), ("plain", 0.004, 101), ("plain", 0.001, 101)]
    assert settle(made, accuracy)[:2] == [("plain", 0.003, 102), ("plain", 0.004, 102)]
    assert made.trials_due() == []
    chosen = made.chosen("plain")
    assert chosen is not None
    assert chosen.options["learning_rate"] == 0.003


def test_a_setting_that_has_hardly_learned_or_diverged_comes_last(made: Protocol) -> None:
    trials = made.regime.trials["plain"]
    scores: dict[str, Any] = {"acc_adv": 0.5, "ece": 0.1, "auroc": 0.5, "per_set": {}, "seconds": 1.0, "torch": "2"}
    for trial, accuracy, shift in zip(trials, (0.9, 0.86, 0.88, 0.9, 0.9), (0.5, 0.99, 0.6, 0.7, 0.4), strict=False):
        identity = made.run("tuning", trial, 100).identity
        made.store.append({**identity, **scores, "acc_in": accuracy, "acc_shift": shift, "commit": None})
    made.store.append({**made.run("tuning", trials[5], 100).identity, "failed": "the loss is nan"})
    order = [trial.options["learning_rate"] for trial in made.best(trials, (100,))]
    assert order == [0.004, 0.003, 0.001, 0.005, 0.002]


def test_final_runs_wait_for_the_trials_and_go_seed_by_seed(made: Protocol) -> None:
    with pytest.raises(UserError, match="trials of plain are not done"):
        made.final_due(["plain"], 5)
    for _ in range(3):
        settle(made, dict.fromkeys(RATES, 0.5))
    due = made.final_due(["plain", "lp_ft"], 2)
    assert [(each.method.name, each.identity["seed"]) for each in due] == [
        ("plain", 0), ("lp_ft", 0), ("plain", 1), ("lp_ft", 1),
    ]  # fmt: skip
    assert {each.name for each in due[0].suite.others} == {"strange"}
    assert due[0].suite.in_distribution.name == "test"


def test_settings_are_chosen_on_validation_data_and_its_domains_alone(made: Protocol) -> None:
    suite = made.trials_due()[0].suite
    assert [each.name for each in (suite.in_distribution, *suite.others)] == [
        "dev",
        "elsewhere",
        "tricky",
        "dev_attacked",
    ]
    assert len(suite.in_distribution.rows) == len(suite.others[-1].rows) == 20
    assert len(suite.others[0].rows) == 10


def options(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"stage": "trials", "dry_run": False, "methods": None, "seeds": 1, **changes})


def test_a_worker_does_what_is_due_records_failures_and_another_finds_nothing_left(
    made: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = protocol.record.__globals__["run_once"]

    def run_once(settings: Any, suite: Suite, method: Any, seed: int, observer: Any) -> Any:
        if method.name == "lp_ft" and method.recipe.learning_rate == RATES[0]:
            raise DivergedError("the loss is nan at step 1")
        return original(settings, suite, method, seed, observer)

    monkeypatch.setitem(protocol.record.__globals__, "run_once", run_once)
    work(made, options(), Console(quiet=True))
    rows = read_runs(made.store.path)
    assert len(rows) == 2 * (6 + 3 + 2)
    assert [row["options"]["learning_rate"] for row in rows if "failed" in row] == [RATES[0]]
    scored = [row for row in rows if "failed" not in row]
    assert all((made.store.path.parent / row["predictions"]).is_file() for row in scored)
    assert {row["protocol"] for row in rows} == {2}
    work(made, options(), Console(quiet=True))
    assert read_runs(made.store.path) == rows


def test_a_dry_run_names_what_is_due_and_does_nothing(made: Protocol) -> None:
    console = Console(record=True, quiet=False, width=200)
    work(made, options(dry_run=True), console)
    assert console.export_text().count("tuning plain seed 100") == 6
    assert not made.store.path.exists()


def test_a_run_has_one_worker_at_a_time(tmp_path: Path) -> None:
    with claim(tmp_path, "run") as first, claim(tmp_path, "run") as second, claim(tmp_path, "other") as third:
        assert (first, second, third) == (True, False, True)
    with claim(tmp_path, "run") as again:
        assert again


def test_swaps_made_for_other_texts_are_refused(made: Protocol, suite: Suite) -> None:
    with pytest.raises(UserError, match="no swaps for test"):
        frozen_attack.frozen(suite.in_distribution)
    path = frozen_attack.FOLDER / "dev.json"
    path.write_text(path.read_text().replace(frozen_attack.digest(suite.validation), "0" * 12))
    with pytest.raises(UserError, match="made for other texts"):
        frozen_attack.frozen(suite.validation)


def test_the_looks_spend_the_error_rate_and_no_more() -> None:
    levels = looks.levels()
    assert levels == pytest.approx((0.00104, 0.00908, 0.0235, 0.0397), rel=0.02)
    assert looks.levels((14,)) == pytest.approx((0.05,), rel=1e-3)
    assert looks.spent(1.0) == pytest.approx(0.05)


def test_controls_follow_from_the_setting_that_was_chosen(made: Protocol) -> None:
    assert made.setting("lp_ft (shorter)") is None
    for _ in range(3):
        settle(made, {rate: 0.5 + rate for rate in RATES})
    assert made.setting("lp_ft (shorter)") == Trial("lp_ft", {"learning_rate": 0.006, "probing_epochs": 2})
    assert made.setting("plain (rate of lp_ft)") == Trial("plain", {"learning_rate": 0.006})


def test_the_status_tells_every_setting_its_columns_and_the_chosen_one(made: Protocol) -> None:
    assert trials_table(made).count("| plain fine-tuning | learning_rate") == 6
    accuracy = {rate: 0.5 + rate for rate in RATES}
    for _ in range(3):
        settle(made, accuracy)
    plain = [line for line in trials_table(made).splitlines() if line.startswith("| plain")]
    assert plain[0].startswith("| plain fine-tuning | learning_rate 0.006 | 3 | 90.0 | 50.6 |")
    assert [line.count("**") for line in plain] == [2, 0, 0, 0, 0, 0]
    assert [line.split(" | ")[2] for line in plain] == ["3", "3", "2", "1", "1", "1"]


def record_final(made: Protocol, names: list[str], seeds: int) -> None:
    """Final runs whose scores are the better the later the name."""
    for due in made.final_due(names, seeds):
        gain = 0.02 * names.index("plain (longer)" if due.identity["epochs"] == 2 else due.method.name)
        scores = {"acc_in": 0.8, "acc_shift": 0.8 + gain, "acc_adv": 0.5, "ece": 0.1, "auroc": 0.7}
        scores["acc_shift"] += 0.001 * due.identity["seed"]
        groups = {"label": {"negative": 0.75, "positive": 0.85}, "length": {}, "rare_words": {}}
        inside = {"role": "in_distribution", "rows": 4, "accuracy": 0.8, "groups": groups, "worst_group": 0.75}
        inside |= {"ece": 0.1, "ece_top_label": 0.2, "ece_validation_temperature": 0.15}
        made.store.append(
            {
                **due.identity, **scores, "per_set": {"test": inside}, "seconds": 2.0, "torch": "2", "commit": None,
                "trajectory": [{"epoch": 0, "l2": 0.0, "share_moved": 0.0, "cka": 1.0, "cosine": 1.0}],
            }
        )  # fmt: skip


def test_a_look_tells_what_each_method_gains_over_plain_at_its_best_and_at_equal_time(made: Protocol) -> None:
    for _ in range(3):
        settle(made, {rate: 0.5 + rate for rate in RATES})
    names = ["plain", "lp_ft", "plain (longer)"]
    assert made.final_due(["plain (longer)"], 1)[0].identity["epochs"] == 2
    record_final(made, names, 5)
    text = look(made, names, 5).read_text()
    assert "Intervals of 99.90%" in text
    assert "over plain fine-tuning at its best setting (learning_rate 0.006)" in text
    told = ("| plain fine-tuning (longer) |", "| head first (LP-FT) |")
    first, second = [line for line in text.splitlines() if line.startswith(told)][:2]
    assert first.startswith("| plain fine-tuning (longer) |")
    assert second.startswith("| head first (LP-FT) |")
    assert "The same over plain fine-tuning (longer) (learning_rate 0.001, 2 epochs)" in text
    assert "| head first (LP-FT) | learning_rate 0.006 | 75.0 | 85.0 | 75.0 | 20.0 | 15.0 | 10.0 | 1.00 |" in text


def test_there_is_no_look_at_other_numbers_of_seeds_or_before_the_runs_are_done(made: Protocol) -> None:
    with pytest.raises(UserError, match="--seeds 6: the protocol looks at 5, 8, 11, 14 seeds"):
        look(made, None, 6)
    for _ in range(3):
        settle(made, dict.fromkeys(RATES, 0.5))
    with pytest.raises(UserError, match=r"runs with 5 seeds are missing of: plain, lp_ft"):
        look(made, ["plain", "lp_ft"], 5)
    with pytest.raises(UserError, match="'lp-ft' is no method of this regime; known: plain, lp_ft"):
        made.final_due(["lp-ft"], 5)
