"""The best trial of every method is found, and every trial is told of."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.robustness.tuning import best_trials, tuning_table, validation_score


def trial(method: str, learning_rate: float, accuracy: float, attacked: float | None, **options: Any) -> dict[str, Any]:
    return {
        "method": method,
        "options": {"learning_rate": learning_rate, "batch_size": 16, **options},
        "train_rows": 2000,
        "epochs": 3,
        "acc_in": accuracy,
        "acc_adv": attacked,
    }


TRIALS = [
    trial("plain", 1e-5, 0.80, 0.40),
    trial("plain", 2e-5, 0.79, 0.50),
    trial("plain", 3e-5, 0.81, 0.48),
    trial("roast", 1e-5, 0.7, 0.3, alpha=0.6),
    trial("roast", 1e-5, 0.7, 0.2, alpha=0.9),
]


def test_the_score_is_the_mean_of_accuracy_and_accuracy_under_attack() -> None:
    assert validation_score(TRIALS[0]) == pytest.approx(0.6)
    assert validation_score(trial("plain", 1e-5, 0.8, None)) == pytest.approx(0.8)


def test_the_best_trial_is_the_first_of_the_largest_score() -> None:
    best = best_trials(TRIALS)
    assert best == {"plain": TRIALS[1], "roast": TRIALS[3]}
    assert best_trials([TRIALS[1], trial("plain", 9e-5, 0.78, 0.51)])["plain"] is TRIALS[1]


def test_a_trial_that_has_hardly_learned_is_not_chosen_however_hard_it_is_to_attack() -> None:
    learned, chance = trial("plain", 1e-5, 0.61, 0.19), trial("plain", 2e-5, 0.45, 0.40)
    close = trial("plain", 3e-5, 0.59, 0.22)
    assert best_trials([chance, learned])["plain"] is learned
    assert best_trials([chance, learned, close])["plain"] is close


def test_the_table_has_every_trial_with_what_varies_and_marks_the_best() -> None:
    lines = tuning_table(TRIALS).splitlines()
    assert lines[2:] == [
        "| plain fine-tuning | learning_rate 2e-05 | 79.0 | 50.0 | **64.5** |",
        "| plain fine-tuning | learning_rate 3e-05 | 81.0 | 48.0 | 64.5 |",
        "| plain fine-tuning | learning_rate 1e-05 | 80.0 | 40.0 | 60.0 |",
        "| RoAST | learning_rate 1e-05, alpha 0.6 | 70.0 | 30.0 | **50.0** |",
        "| RoAST | learning_rate 1e-05, alpha 0.9 | 70.0 | 20.0 | 45.0 |",
    ]


def test_the_table_tells_trials_with_more_rows_or_epochs_apart() -> None:
    longer = {**TRIALS[0], "train_rows": 6000, "epochs": 2}
    settings = [line.split(" | ")[1] for line in tuning_table([TRIALS[0], longer]).splitlines()[2:]]
    assert settings == ["rows 2000, epochs 3", "rows 6000, epochs 2"]
