"""The advice follows from the intervals, in either direction, and claims nothing beyond them."""

from __future__ import annotations

import random

import pytest

from benchmarks.robustness.findings_tables import seed_spread
from benchmarks.robustness.recommendation import SEED_SPREAD, recommendation
from benchmarks.robustness.runs import Row
from benchmarks.robustness.sources.files import OWN_DATA

PLAIN = {"acc_in": 0.85, "acc_shift": 0.80, "acc_adv": 0.50, "ece": 0.10, "auroc": 0.75}


def runs(
    method: str,
    gain: float = 0.0,
    *,
    seeds: int = 5,
    noise: float = 0.0,
    seconds: float = 10.0,
    **changes: float | None,
) -> list[Row]:
    """Runs that close so much of plain fine-tuning's distance to the best value in every column, give or take noise."""
    draw = random.Random(method)
    rows = []
    for seed in range(seeds):
        mine = gain + noise * draw.choice((-1, 1)) * (1 + 0.1 * seed)
        scores: Row = {
            key: value + mine * ((0.0 if key == "ece" else 1.0) - value) + 0.001 * seed for key, value in PLAIN.items()
        }
        rows.append({"task": OWN_DATA, "method": method, "seed": seed, "seconds": seconds, **scores, **changes})
    return rows


def advised(*several: list[Row]) -> str:
    return recommendation([row for each in several for row in each])


def test_without_a_gain_that_is_shown_one_stays_with_plain_fine_tuning() -> None:
    text = advised(runs("plain"), runs("roast", 0.02, noise=0.2), runs("wconsol", -0.01, noise=0.1))
    assert text.startswith("No method is shown to beat plain fine-tuning on your data: stay with it.")
    assert "Fine-tune with" not in text


def test_a_method_that_is_shown_to_be_better_is_advised_with_its_interval_and_its_cost() -> None:
    text = advised(runs("plain"), runs("roast", 0.1, noise=0.01, seconds=25.0), runs("wconsol", 0.0, noise=0.1))
    assert text.startswith("Fine-tune with RoAST: it is shown to beat plain fine-tuning on your data, by +1")
    assert "for 2.5 times the seconds" in text
    assert "pull" not in text


def test_of_equals_the_cheapest_is_advised_and_the_others_are_told() -> None:
    text = advised(
        runs("plain"),
        runs("freelb", 0.11, noise=0.02, seconds=30.0),
        runs("wconsol", 0.10, noise=0.02, seconds=12.0),
    )
    assert text.startswith("Fine-tune with pull to pre-trained weights")
    assert "none is shown to beat pull to pre-trained weights as well or costs less: FreeLB (" in text


def test_a_dearer_method_is_advised_where_it_is_shown_to_beat_the_cheaper_one() -> None:
    text = advised(
        runs("plain"),
        runs("freelb", 0.30, noise=0.01, seconds=30.0),
        runs("wconsol", 0.10, noise=0.01, seconds=12.0),
    )
    assert text.startswith("Fine-tune with FreeLB")
    assert "none is shown to beat FreeLB" in text


def test_methods_that_are_shown_to_be_worse_are_named() -> None:
    text = advised(runs("plain"), runs("roast", -0.2, noise=0.01), runs("lp_ft", 0.01, noise=0.2))
    assert text.startswith("No method is shown to beat plain fine-tuning")
    assert "Shown to be worse than plain fine-tuning: RoAST (-" in text


def test_a_column_in_which_the_advised_method_is_shown_to_be_worse_is_named() -> None:
    roast = runs("roast", 0.3, noise=0.01)
    for row, plain in zip(roast, runs("plain"), strict=True):
        row["auroc"] = plain["auroc"] - 0.03
    text = advised(runs("plain"), roast)
    assert text.startswith("Fine-tune with RoAST")
    assert "In one column it is shown to be worse, AUROC: -" in text


def test_columns_that_the_data_lacks_do_not_count() -> None:
    text = advised(runs("plain", acc_adv=None, auroc=None), runs("roast", 0.1, noise=0.01, acc_adv=None, auroc=None))
    assert text.startswith("Fine-tune with RoAST")


@pytest.mark.parametrize(("methods", "level"), [(1, "95%"), (2, "97.5%"), (5, "99%")])
def test_the_level_rises_with_the_number_of_methods(methods: int, level: str) -> None:
    text = advised(runs("plain"), *(runs(f"method {number}", noise=0.1) for number in range(methods)))
    assert f"Intervals of {level}, over 5 seeds" in text


def test_many_methods_without_any_effect_are_hardly_ever_advised() -> None:
    wrong = 0
    for trial in range(60):
        draw = random.Random(trial)
        rows = []
        for method in ("plain", "a", "b", "c", "d"):
            for row in runs(method, seeds=4):
                rows.append({**row, **{key: row[key] + draw.gauss(0, 0.02) for key in PLAIN}})
        wrong += recommendation(rows).startswith("Fine-tune")
    assert wrong <= 9  # of 60 studies 3 are expected; more than 9 come once in 2,000 times


def test_one_seed_shows_nothing() -> None:
    text = advised(runs("plain", seeds=1), runs("roast", 0.3, seeds=1))
    assert "One seed does not tell a method from its luck: another one moves the average by 4 points" in text
    assert "Run --seeds 5" in text
    assert "stay with it" in text


def test_what_one_seed_is_worth_is_what_the_recorded_runs_say() -> None:
    assert round(100 * seed_spread()) == SEED_SPREAD


def test_without_anything_to_compare_there_is_no_advice() -> None:
    assert "without plain fine-tuning to compare with" in advised(runs("roast"))
    assert "without other methods to compare with" in advised(runs("plain"))


def test_without_a_common_seed_or_anything_to_improve_there_is_no_advice() -> None:
    late = [{**row, "seed": row["seed"] + 10} for row in runs("roast", 0.3)]
    assert "No method has a seed in common" in advised(runs("plain"), late)


def test_on_the_sets_of_the_study_the_data_is_not_called_yours() -> None:
    rows = [{**row, "task": "sentiment"} for row in [*runs("plain"), *runs("roast", 0.0, noise=0.1)]]
    assert "on this data: stay with it" in recommendation(rows)
