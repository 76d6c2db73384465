"""Intervals, and the report made from recorded runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
from scipy import stats

from benchmarks.robustness import report
from benchmarks.robustness.summary import PERSPECTIVES, bootstrap, improvement_interval, mean, summarize

BINS = {"rows": [0] * 9 + [4], "confidence": [0] * 9 + [3.8], "right": [0] * 9 + [3]}


def run(method: str, seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    """A recorded run whose accuracies are all alike."""
    labelled = {
        "rows": 4,
        "accuracy": accuracy,
        "ece": 0.1,
        "ece_top_label": 1 - accuracy,
        "reliability": BINS,
        "worst_group": accuracy / 2,
        "groups": {"label": {"negative": accuracy / 2}, "rare_words": {"low": accuracy}},
    }
    return {
        "purpose": "final", "task": "sentiment", "method": method, "model": "some/tiny", "seed": seed,
        "options": {"learning_rate": 1e-5}, "train_rows": 64, "epochs": 3,
        "acc_in": accuracy, "acc_shift": accuracy, "acc_adv": accuracy, "ece": 1 - accuracy, "auroc": None,
        "per_set": {
            "test": {"role": "in_distribution", **labelled},
            "imdb": {"role": "shift", **labelled},
            "elsewhere": {"role": "anomaly", "rows": 4, "auroc": 0.7, "aupr": 0.6, "fpr95": 0.9},
        },
        "seconds": 10.0 if method == "plain" else 25.0, "torch": "2.13.0", "commit": None,
        "trajectory": [{"epoch": n, "l2": n, "share_moved": 0.1 * n, "cka": 1 - 0.1 * n, "cosine": 1} for n in (0, 1)],
        **changes,
    }  # fmt: skip


PLAIN = [run("plain", seed, accuracy) for seed, accuracy in enumerate((0.80, 0.82, 0.78))]
ROAST = [run("roast", seed, accuracy) for seed, accuracy in enumerate((0.85, 0.87, 0.83))]
TRIALS = [
    run("roast", 9, 0.8, purpose="tuning", options={"alpha": alpha, "beta": beta})
    for alpha in (0.6, 0.9)
    for beta in (1, 10)
]


def by_seed(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {row["seed"]: row for row in rows}


def test_a_bootstrap_of_equal_seeds_has_no_width() -> None:
    interval = bootstrap(lambda seeds: mean([0.5 for _ in seeds]), [0, 1, 2])
    assert interval is not None
    assert (interval.low, interval.value, interval.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.6], [0.5, 0.7], [0.1, 0.4, 0.2, 0.9, 0.3]])
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    interval = bootstrap(lambda seeds: mean([values[seed] for seed in seeds]), range(len(values)))
    assert interval is not None
    expected = stats.t.interval(0.95, len(values) - 1, numpy.mean(values), stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_of_many_seeds_the_interval_is_drawn_the_same_every_time_and_close_to_students() -> None:
    values = numpy.random.default_rng(1).normal(size=12)
    first, second = (
        bootstrap(lambda seeds: mean([float(values[seed]) for seed in seeds]), range(12)) for _ in range(2)
    )
    assert first == second
    assert first is not None
    expected = stats.t.interval(0.95, 11, numpy.mean(values), stats.sem(values))
    assert (first.low, first.high) == pytest.approx(expected, abs=0.03)


def test_one_seed_has_no_interval() -> None:
    interval = bootstrap(lambda seeds: 0.5, [3])
    assert interval is not None
    assert interval.low is None
    assert interval.high is None


def test_improvement_is_of_means_and_judged_by_pairs() -> None:
    interval = improvement_interval(by_seed(ROAST), by_seed(PLAIN), PERSPECTIVES[:1])
    assert interval is not None
    assert interval.value == pytest.approx(0.05 / 0.20)
    assert interval.low is not None
    assert interval.low > 0.15  # every pair differs by 0.05, whatever the seeds do together
    assert improvement_interval(by_seed(ROAST), {9: PLAIN[0]}) is None


def test_a_summary_averages_over_the_perspectives_that_exist() -> None:
    plain, roast = summarize([*PLAIN, *ROAST])
    assert plain.average_improvement == 0
    assert roast.scores["acc_in"] == pytest.approx(0.85)
    assert roast.improvement["ece"] == pytest.approx(0.25)
    assert roast.improvement["auroc"] is None
    assert roast.average_improvement == pytest.approx(0.25)


def test_a_report_has_tables_and_pictures(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*PLAIN, *ROAST, *TRIALS]))
    assert report.main([str(path), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| RoAST | **85.0** (80.0 to 90.0) |" in text
    assert "| plain fine-tuning | _80.0_ (75.0 to 85.0) |" in text
    assert "| 25 | 2.50 |" in text
    assert "**25.0**" in text
    assert "seeds per method: 3. " in text
    assert "| Method | ECE, no temperature | ECE | AUROC | AUPR | FPR95 |" in text
    detection = " | ".join(f"**{score}** ({score} to {score})" for score in ("10.0", "70.0", "60.0", "90.0"))
    assert f"| plain fine-tuning | _20.0_ (15.0 to 25.0) | {detection}" in text
    assert f"| RoAST | **15.0** (10.0 to 20.0) | {detection}" in text
    assert "| Method | label: negative | rare words: low |" in text
    assert "| RoAST | 42.5 | 85.0 |" in text
    assert "| Method | L2 1 | moved 1 | CKA 1 |" in text
    assert "| plain fine-tuning | 1.00 | 10% | 0.90 |" in text
    assert "over each of the other methods" not in text
    pictures = [
        f"sentiment-tiny-{kind}.png" for kind in ("reliability", "improvement", "shift", "distance", "alpha-beta")
    ]
    for name in pictures:
        assert f"]({name})" in text
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_a_report_says_what_roast_gains_over_each_other_method_on_their_common_seeds(tmp_path: Path) -> None:
    other = run("roast_random", 1, 0.83)
    report.write_report([*PLAIN, *ROAST, other], tmp_path)
    gains = (tmp_path / "report.md").read_text().split("over each of the other methods")[1]
    gain = 100 * (0.87 - 0.83) / (1 - 0.83)  # of the one seed that both have
    assert f"| RoAST, random importance | **{gain:.1f}** |" in gains


def test_methods_with_different_numbers_of_seeds_are_ranked_on_those_that_all_have(tmp_path: Path) -> None:
    more = [run("plain", 3, 0.1), run("roast", 3, 0.9)]  # would make a very good method of RoAST
    better = [run("wconsol", seed, 0.9) for seed in range(3)]
    once = [run("lp_ft", 0, 0.99)]
    report.write_report([*PLAIN, *ROAST, *more, *better, *once], tmp_path)
    heading = "that all of these have, 0, 1, 2, by average.\n"
    ranking = (tmp_path / report.REPORT).read_text().split(heading)[1]
    first, second, after = ranking.strip().splitlines()[2:5]
    assert re.match(r"\| pull to pre-trained weights .*\*\*50\.0\*\* \(.*\) \|$", first)
    assert re.match(r"\| RoAST .*_25\.0_ \(.*\) \|$", second)
    assert not after.startswith("| head first")


def test_methods_with_the_same_seeds_have_no_second_table_of_improvement(tmp_path: Path) -> None:
    report.write_report([*PLAIN, *ROAST], tmp_path)
    assert "that all of these have" not in (tmp_path / report.REPORT).read_text()


def test_variants_of_a_method_are_told_apart_by_what_differs() -> None:
    other = run("roast", 0, 0.9, options={"learning_rate": 2e-5})
    assert list(report.by_method([*PLAIN, *ROAST, other])) == [
        "plain", "roast (learning_rate 1e-05)", "roast (learning_rate 2e-05)",
    ]  # fmt: skip


def test_numbers_that_are_written_differently_make_no_variant() -> None:
    rows = [run("roast", seed, 0.9, options={"beta": beta}) for seed, beta in enumerate((10, 10.0, 10))]
    assert report.by_method(rows) == {"roast": by_seed(rows)}


def test_methods_are_told_in_one_order_whatever_ran_first(tmp_path: Path) -> None:
    report.write_report([run("roast_random", 0, 0.8), *ROAST, run("of another version", 0, 0.8), *PLAIN], tmp_path)
    table = (tmp_path / "report.md").read_text().split("Relative improvement")[0]
    methods = re.findall(r"^\| ([A-Za-z][A-Za-z_, -]+) \|", table, re.MULTILINE)
    assert methods == ["Method", "plain fine-tuning", "RoAST", "RoAST, random importance", "of another version"]


def test_only_runs_with_a_setting_are_told_and_compared(tmp_path: Path) -> None:
    slower = [run("plain", seed, 0.5, options={"learning_rate": 0.5}) for seed in range(3)]
    path, output = tmp_path / "runs.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*PLAIN, *ROAST, *slower, *TRIALS]))
    assert report.main([str(path), "--output", str(output), "--where", "learning_rate=0.00001"]) == 0
    text = (output / report.REPORT).read_text()
    assert re.search(r"^\| plain fine-tuning \| 80\.0 ", text, re.MULTILINE)
    assert re.search(r"^\| RoAST \| \*\*25\.0\*\*", text, re.MULTILINE)
    assert "Trials" not in text


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("learning_rate=1", "--where 'learning_rate=1': there is no such final run; learning_rate is 1e-05"),
        ("alpha=0.6", "--where 'alpha=0.6': there is no such final run; none has a setting 'alpha'"),
        ("alpha", "--where 'alpha': write KEY=VALUE"),
    ],
)
def test_a_condition_that_no_final_run_meets_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], condition: str, message: str
) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*PLAIN, *TRIALS]))
    assert report.main([str(path), "--output", str(tmp_path / "out"), "--where", condition]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_trials_alone_make_a_report_without_scores(tmp_path: Path) -> None:
    report.write_report(TRIALS, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Trials on validation rows" in text
    assert "](sentiment-tiny-alpha-beta.png)" in text
    assert "Relative improvement" not in text


def test_a_map_of_alpha_and_beta_needs_all_else_to_be_equal(tmp_path: Path) -> None:
    others = [
        run("roast", 9, 0.8, purpose="tuning", options={"alpha": alpha, "beta": beta, "learning_rate": alpha * beta})
        for alpha, beta in ((0.6, 1.0), (0.9, 10.0))
    ]
    report.write_report(others, tmp_path)
    assert not list(tmp_path.glob("*alpha-beta.png"))


@pytest.mark.parametrize(
    ("rows", "message"), [([], "no run with purpose final or tuning"), ([{"a": 1}], r"runs\.jsonl:1: not a run")]
)
def test_runs_that_cannot_be_reported_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], message: str
) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert report.main([str(path), "--output", str(tmp_path / "out")]) == 2
    assert message.replace("\\", "") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl does not exist" in capsys.readouterr().err
