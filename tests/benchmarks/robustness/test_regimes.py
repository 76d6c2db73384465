"""The regimes: what they run can be made, identities stay what they were, and each one runs from end to end."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.robustness import frozen_attack, protocol
from benchmarks.robustness.data import TASKS
from benchmarks.robustness.packaged_models import SMOLLM2
from benchmarks.robustness.protocol import Protocol, settings_for
from benchmarks.robustness.recorded import RESULTS, protocol_runs
from benchmarks.robustness.regimes import REGIMES, Regime, possible, regimes
from benchmarks.robustness.runs import Row, identity_of, read_runs
from benchmarks.robustness.settings import method_settings
from benchmarks.robustness.sources import load_suite
from benchmarks.robustness.study import digest_of
from benchmarks.robustness.trials import TRIALS, Derived, Trial, by_rate
from tests.support.tiny_classifier import save_decoder, sentences

TINY = {"train_rows": 16, "epochs": 1, "rows": 6, "attack_rows": 2, "train_set": None}


# What `sentiment` had when its runs began: a run that is recorded must not be done again.
@pytest.mark.parametrize(
    ("stage", "count", "digest"), [("trials", 426, "1cd72c42f7a01a0f"), ("final", 142, "1d23310f400b6f54")]
)
def test_the_runs_of_sentiment_are_those_that_it_began_with(stage: str, count: int, digest: str) -> None:
    row = {"options": {"data": "data"}, "train_rows": 2000, "purpose": "final", "seed": 0}
    content = {"content": {"data": "0" * 12, "weights": "1" * 12}}
    found = {digest_of({**each, **content}) for each in protocol_runs("sentiment", stage, [row])}
    assert len(found) == count
    assert hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:16] == digest


def test_every_recorded_run_of_sentiment_is_found() -> None:
    rows = read_runs(RESULTS / "protocol-2" / "sentiment" / "runs.jsonl")
    planned = {identity_of(each) for each in protocol_runs("sentiment", "trials", rows)}
    assert rows
    assert [row["options"] for row in rows if identity_of(row) not in planned] == []


@pytest.mark.parametrize("winner", TRIALS)
def test_whatever_wins_every_setting_of_every_regime_can_be_made(winner: str) -> None:
    found = regimes(winner)
    for name, regime in found.items():
        settings = [*possible(name, found)]
        assert {"plain", "roast", winner} <= {each.method for each in settings}, name
        for trial in settings:
            (method,) = method_settings(settings_for(regime, "final", trial, 0))
            method.create(TASKS[regime.task])
        for method_name, trials in regime.trials.items():
            assert len({each.changes() for each in trials}) == regime.survivors[0], (name, method_name)


def test_a_control_runs_where_what_it_controls_has_won() -> None:
    entailment = regimes("return_by_rank")["entailment"]
    assert [*entailment.others] == ["return_by_rank (random ranks)", "return_by_rank (even pull)"]
    assert entailment.usual == ["plain", "roast", "return_by_rank", *entailment.others]
    assert [*regimes("plain")["entailment"].trials] == ["plain", "roast"]


# ------------------------------------------------------------------------------------------------- tiny, end to end


@pytest.fixture
def pairs_folder(folder_of_every_role: Callable[..., Path]) -> Path:
    """Entailment with every role."""

    def pairs(count: int, seed: int) -> str:
        rows = zip(sentences(count, seed), sentences(count, seed + 100), strict=True)
        lines = [f"{first}\t{second}\t{number % 3}" for number, ((first, _), (second, _)) in enumerate(rows)]
        return "premise\thypothesis\tlabel\n" + "".join(f"{line}\n" for line in lines)

    return folder_of_every_role("entailment", pairs, 40)


def tiny(regime: Regime, model: Path) -> Regime:
    """The regime with a few rows of the tests' own data, and one setting of each method."""
    trials = {name: tried[:1] for name, tried in regime.trials.items()}
    others = {
        name: replace(other, among={}) if isinstance(other, Derived) else other for name, other in regime.others.items()
    }
    return replace(
        regime, **TINY, model=str(model), domains=("elsewhere", "tricky"), trials=trials, others=others,
        survivors=(1,) * len(regime.survivors),
    )  # fmt: skip


def options(stage: str) -> argparse.Namespace:
    return argparse.Namespace(stage=stage, dry_run=False, methods=None, seeds=1)


def settle(made: Protocol) -> None:
    """Record that every trial was done, equally well."""
    scores = {"acc_in": 0.9, "acc_shift": 0.8, "acc_adv": 0.5, "ece": 0.1, "auroc": 0.5}
    while due := made.trials_due():
        for each in due:
            made.store.append({**each.identity, **scores, "per_set": {}, "seconds": 1.0, "torch": "2", "commit": None})


def keep_swaps(folder: Path, task: str, into: Path) -> None:
    validation = load_suite([str(folder)], TASKS[task]).validation
    kept = {"set": "dev", "rows": 20, "digest": frozen_attack.digest(validation), "swaps": []}
    into.mkdir()
    (into / "dev.json").write_text(json.dumps(kept))


@pytest.mark.parametrize("name", [each for each in REGIMES if each != "sentiment"])
def test_a_regime_runs_from_its_trials_to_its_final_runs(
    name: str,
    model_folder: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frozen_attack, "FOLDER", tmp_path / "frozen")
    every = regimes("combined")  # has all parts
    whole = every[name]
    data = request.getfixturevalue("pairs_folder" if whole.task == "entailment" else "sentiment_folder")
    keep_swaps(data, whole.task, tmp_path / "frozen")
    model = save_decoder(tmp_path / "decoder") if whole.model == SMOLLM2 else model_folder
    regime, source = tiny(whole, model), tiny(every["sentiment"], model_folder)
    made = Protocol(regime, [str(data)], tmp_path / name, {"sentiment": source})
    for each in made.sources.values():
        settle(each)
    protocol.work(made, options("trials"), Console(quiet=True))
    protocol.work(made, options("final"), Console(quiet=True))
    rows = read_runs(made.store.path)
    final = [row for row in rows if row["purpose"] == "final"]
    assert len(final) == len(whole.usual)
    assert [row.get("failed") for row in rows] == [None] * len(rows)
    assert {"plain", "roast", "combined"} <= {row["method"] for row in final}
    assert len(rows) - len(final) == len(regime.trials) * len(regime.survivors)
    assert all("strange" in row["per_set"] and "elsewhere" not in row["per_set"] for row in final)


@pytest.fixture
def sources(model_folder: Path, sentiment_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Protocol:
    """A regime whose settings come from another one, whose trials are done: the best learning rate is 2e-3."""
    monkeypatch.setattr(frozen_attack, "FOLDER", tmp_path / "frozen")
    keep_swaps(sentiment_folder, "sentiment", tmp_path / "frozen")
    roast = tuple(
        Trial("roast", {"learning_rate": rate, "alpha": alpha})
        for rate, alpha in ((1e-3, 0.9), (2e-3, 0.6), (3e-3, 0.9))
    )
    base = Regime(
        task="sentiment", domains=("elsewhere", "tricky"), model=str(model_folder), precision="float32", trials={},
        **TINY,
    )  # fmt: skip
    source = replace(base, trials={"plain": by_rate("plain", 1e-3, 2e-3), "roast": roast}, survivors=(3, 2))
    others: dict[str, Trial | Derived] = {
        "roast": Derived("roast", {"beta": 2.0}, regime="source", rate_of_plain=True),
        "roast of 0.9": Derived("roast", among={"alpha": 0.9}, regime="source"),
        "advembed": Derived("roast", among={"alpha": 0.9}, regime="source", method="advembed"),
    }
    regime = replace(base, trials={"plain": by_rate("plain", 4e-3)}, others=others, survivors=(1,))
    return Protocol(regime, [str(sentiment_folder)], tmp_path / "own", {"source": source})


def record_trials(made: Protocol) -> None:
    """Record what is due; 2e-3 is best, then larger rates."""
    while due := made.trials_due():
        for each in due:
            rate = each.method.recipe.learning_rate
            scores: Row = {"acc_in": 0.9, "acc_shift": 0.9 if rate == 2e-3 else 0.5 + rate, "acc_adv": 0.5, "ece": 0.1}
            made.store.append(
                {**each.identity, **scores, "auroc": 0.5, "per_set": {}, "seconds": 1.0, "torch": "2", "commit": None}
            )


def test_settings_follow_from_the_trials_of_another_regime(sources: Protocol) -> None:
    source = sources.sources["source"]
    assert source.store.path.parent.name == "source"
    assert sources.setting("roast of 0.9") is None
    record_trials(source)
    assert sources.setting("roast of 0.9") == Trial("roast", {"learning_rate": 3e-3, "alpha": 0.9})
    assert sources.setting("advembed") == Trial("advembed", {"learning_rate": 3e-3})
    assert sources.setting("roast") is None  # waits for the regime's own trials of plain fine-tuning
    record_trials(sources)
    assert sources.setting("roast") == Trial("roast", {"learning_rate": 4e-3, "alpha": 0.6, "beta": 2.0})


def test_a_setting_that_may_come_up_is_listed(sources: Protocol) -> None:
    record_trials(sources.sources["source"])
    record_trials(sources)
    every = {"own": sources.regime, "source": sources.sources["source"].regime}
    listed = [*possible("own", every)]
    assert all(sources.setting(name) in listed for name in sources.regime.usual)
