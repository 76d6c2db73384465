"""The demo's packages and the hub."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from benchmarks.robustness.data import TASKS
from benchmarks.robustness.sources import hub
from benchmarks.robustness.sources.demo import load_demo
from benchmarks.robustness.sources.docstrings import docstring_paragraphs, is_prose
from roast_optim.evaluation.errors import UserError

SENTIMENT, ENTAILMENT = TASKS["sentiment"], TASKS["entailment"]


def test_the_demo_holds_out_what_it_measures_on() -> None:
    suite = load_demo(SENTIMENT)
    train, validation, test = ({*rows["sentence"][:]} for rows in (
        suite.train, suite.validation.rows, suite.in_distribution.rows
    ))  # fmt: skip
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(validation) == len(test) == 1000
    assert 0.4 < sum(suite.train["label"][:]) / len(suite.train) < 0.6
    assert [(each.name, each.role) for each in suite.others] == [("imdb", "shift"), ("docstrings", "anomaly")]
    assert not any("<br" in text for (text,) in suite.others[0].texts())


def test_the_demo_takes_the_same_rows_every_time() -> None:
    first, second = (load_demo(SENTIMENT).sampled(50, 30) for _ in range(2))
    assert first.train.to_dict() == second.train.to_dict()
    assert len(first.train) == 50
    for one, other in zip(first.others, second.others, strict=True):
        assert one.rows.to_dict() == other.rows.to_dict()
        assert len(one.rows) == 30


def test_the_demo_is_for_sentiment() -> None:
    with pytest.raises(UserError, match="'entailment': the demo data is for sentiment only"):
        load_demo(ENTAILMENT)


def test_docstrings_are_many_distinct_sentences() -> None:
    paragraphs = docstring_paragraphs()
    assert len(paragraphs) > 1000
    assert len({*paragraphs}) == len(paragraphs)
    assert paragraphs == docstring_paragraphs()
    assert all(is_prose(each) for each in paragraphs)


@pytest.mark.parametrize(
    "paragraph",
    [
        "",
        "Too short.",
        "lower case begins this sentence of more than eight words.",
        "No full stop ends this sentence of more than eight words",
        ">>> print(1) is what Python does here all day long.",
        "A | table | of | many | cells | is | not | prose |.",
    ],
)
def test_code_and_fragments_are_not_prose(paragraph: str) -> None:
    assert not is_prose(paragraph)


def hub_rows(path: str, config: str | None, **options: Any) -> Dataset:
    """What the hub would answer: every column that any set has, two rows per label."""
    labels: list[Any] = [0, 1, 2, 0, 1, 2, -1]
    if path.endswith(("dynasent", "WANLI")):
        names = (
            ["negative", "neutral", "positive"] if "dynasent" in path else ["entailment", "neutral", "contradiction"]
        )
        labels = [*names, *names, "unknown"]
    if any(binary in (config or path) for binary in ("sst2", "imdb", "yelp", "amazon", "qnli", "wnli", "hans")):
        labels = [0, 1, 0, 1, 0, 1, -1]
    texts = [f"{path} {config} {number}" for number in range(7)]
    columns = ("sentence", "text", "content", "verse_text", "premise", "hypothesis", "sentence1", "sentence2",
               "question", "question1", "en")  # fmt: skip
    return Dataset.from_dict(
        {**dict.fromkeys(columns, texts), "translation": [{"en": text, "de": ""} for text in texts],
         "label": labels, "gold": labels, "gold_label": labels}
    )  # fmt: skip


@pytest.mark.parametrize("task", [SENTIMENT, ENTAILMENT], ids=lambda task: task.name)
def test_hub_sets_become_a_suite(monkeypatch: pytest.MonkeyPatch, task: Any) -> None:
    monkeypatch.setattr(hub, "load_dataset", hub_rows)
    suite = hub.load_hub(task)
    assert {each.role for each in suite.others} == {"shift", "adversarial", "anomaly"}
    names = [each.name for each in (suite.validation, suite.in_distribution, *suite.others)]
    assert len({*names}) == len(names)
    for each in suite.others:
        assert len(each.rows) > 0
        if each.role != "anomaly":
            assert {*each.rows["label"][:]} <= set(range(len(task.labels)))
            assert -1 not in each.rows["label"][:]
        if each.merged_labels:
            assert 1 not in each.rows["label"][:]


def test_a_column_that_the_hub_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "load_dataset", lambda *names, **options: Dataset.from_dict({"text": ["a"], "label": [0]}))
    with pytest.raises(UserError, match="column 'sentence' is missing; it has text, label"):
        hub.load_hub(SENTIMENT)


def test_a_set_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*names: Any, **options: Any) -> Dataset:
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "load_dataset", fail)
    with pytest.raises(UserError, match="cannot load stanfordnlp/sst2 from the hub: no network"):
        hub.load_hub(SENTIMENT)
