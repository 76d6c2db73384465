"""evaluate() on functions, pipelines and models: scores by hand, and what does not fit is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import BertForSequenceClassification, pipeline

from roast_optim.evaluation import AnomalyScores, Evaluation, LabelledScores, TextSet, evaluate
from roast_optim.evaluation.classifier import Classifier
from roast_optim.evaluation.predictors import Predictor
from roast_optim.evaluation.progress import Observer
from roast_optim.evaluation.sets import sampled_rows
from tests.support.tiny_classifier import sentences

CONFIDENT, UNSURE = (0.9, 0.06, 0.04), (0.4, 0.35, 0.25)


def sureness(texts: Sequence[str]) -> list[tuple[float, ...]]:
    """A classifier of three labels: its first word says which, an exclamation mark that it is sure."""
    found = []
    for text in texts:
        label, _, rest = text.partition(" ")
        probabilities = CONFIDENT if "!" in rest else UNSURE
        found.append(tuple(numpy.roll(probabilities, int(label))))
    return found


INSIDE = TextSet("test", "in_distribution", ["0 !", "1 !", "2 !", "0 ?"], [0, 1, 2, 1])
SHIFT = TextSet("elsewhere", "shift", ["0 !", "1 ?"], [1, 1])
SECOND = TextSet("far away", "shift", ["2 !"], [2])
TRICKY = TextSet("tricky", "adversarial", ["0 !", "1 !", "2 ?", "1 ?"], [1, 2, 0, 1])
STRANGE = TextSet("strange", "anomaly", ["1 ?", "2 !"])


def evaluated(*sets: TextSet, **options: Any) -> Evaluation:
    return evaluate(sureness, sets, **options)


def test_the_five_columns_by_hand() -> None:
    found = evaluated(INSIDE, SHIFT, SECOND, TRICKY, STRANGE)
    assert found.acc_in == pytest.approx(3 / 4)
    assert found.acc_shift == pytest.approx((1 / 2 + 1) / 2)
    assert found.acc_adv == pytest.approx(1 / 4)
    assert found.ece == pytest.approx(numpy.mean([each.ece for each in found.labelled().values()]))
    # Inside 0.9 three times and 0.4; of the anomalies 0.4 and 0.9: (3 + 1/2) of 4, and (0 + 3/2) of 4.
    assert found.auroc == pytest.approx((3.5 + 1.5) / 8)
    assert list(found.per_set) == ["test", "elsewhere", "far away", "tricky", "strange"]


def test_scores_of_a_set_by_hand() -> None:
    found = evaluated(INSIDE, STRANGE, label_names=("a", "b", "c")).per_set
    inside, strange = found["test"], found["strange"]
    assert isinstance(inside, LabelledScores)
    assert isinstance(strange, AnomalyScores)
    assert inside.ece_top_label == pytest.approx((3 * 0.1 + 0.4) / 4, abs=1e-6)
    assert inside.reliability.rows == [0, 0, 0, 0, 1, 0, 0, 0, 0, 3]
    assert inside.groups["label"] == {"a": 1.0, "b": 0.5, "c": 1.0}
    assert inside.worst_group == min(each for group in inside.groups.values() for each in group.values())
    assert inside.ece_validation_temperature is None
    assert strange.rows == 2


def test_columns_without_sets_are_none_and_the_result_is_json() -> None:
    found = evaluated(INSIDE)
    assert (found.acc_shift, found.acc_adv, found.auroc) == (None, None, None)
    again = json.loads(json.dumps(evaluated(INSIDE, SHIFT, STRANGE).as_json(), allow_nan=False))
    assert again["per_set"]["elsewhere"]["accuracy"] == 0.5
    assert set(again["per_set"]["test"]["reliability"]) == {"rows", "confidence", "right"}


def test_a_validation_set_gives_one_temperature_and_no_score() -> None:
    found = evaluated(INSIDE, replace(TRICKY, name="dev", role="validation"))
    assert list(found.per_set) == ["test"]
    assert found.labelled()["test"].ece_validation_temperature is not None


def test_the_bins_of_all_labelled_sets_are_pooled() -> None:
    found = evaluated(INSIDE, SHIFT, STRANGE)
    assert found.reliability().rows == [0, 0, 0, 0, 2, 0, 0, 0, 0, 4]
    assert found.reliability().right == [0, 0, 0, 0, 1, 0, 0, 0, 0, 3]


def test_merged_predictions_count_as_another_label() -> None:
    found = evaluated(INSIDE, replace(SHIFT, texts=["2 !", "1 !"], labels=[1, 1], merged_labels={2: 1}))
    assert found.acc_shift == 1.0


def test_pairs_reach_a_function_as_tuples_and_single_texts_as_strings() -> None:
    seen: list[Any] = []

    def predict(texts: list[Any]) -> torch.Tensor:
        seen.extend(texts)
        return torch.tensor([[0.0, 1.0], [2.0, 0.0]])[: len(texts)]

    evaluate(
        predict,
        [TextSet("test", "in_distribution", [("a", "b"), ("c", "d")], [1, 0]), TextSet("odd", "anomaly", ["alone"])],
    )
    assert seen == [("a", "b"), ("c", "d"), "alone"]


# ---------------------------------------------------------------------------------------------------------- classifiers

LOGITS = [[0.3, -1.2, 2.0], [1.0, 0.0, -3.0]]


@pytest.mark.parametrize(
    "outputs",
    [
        torch.tensor(LOGITS),
        torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True),
        numpy.array(LOGITS),
        LOGITS,
        [*torch.tensor(LOGITS)],
        torch.tensor(LOGITS).softmax(-1),
        torch.tensor(LOGITS).softmax(-1).to(torch.float16).numpy(),
    ],
    ids=["float32", "float64 with a gradient", "array", "lists", "list of tensors", "probabilities", "float16"],
)
def test_logits_and_probabilities_of_any_kind_are_the_same_prediction(outputs: Any) -> None:
    found = Predictor(lambda texts: outputs)([("a",), ("b",)])
    torch.testing.assert_close(found.softmax(-1), torch.tensor(LOGITS).softmax(-1), atol=1e-3, rtol=0)


def test_a_probability_of_zero_is_finite() -> None:
    found = Predictor(lambda texts: [[0.0, 1.0]] * len(texts))([("a",)])
    assert bool(torch.isfinite(found).all())
    assert found.softmax(-1).tolist() == [pytest.approx([0.0, 1.0])]


def test_what_was_probabilities_may_not_become_something_else() -> None:
    answers = iter([[[0.2, 0.8]], [[3.0, 1.0]]])
    predictor = Predictor(lambda texts: next(answers))
    predictor([("a",)])
    with pytest.raises(ValueError, match="do not sum to 1"):
        predictor([("a",)])


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([1.0, 2.0], r"shape \[2\] for 2 texts"),
        ([[1.0], [2.0]], r"shape \[2, 1\]"),
        ([[1.0, 2.0]], r"shape \[1, 2\] for 2 texts"),
        ([[1.0, float("nan")], [0.0, 1.0]], "not finite"),
        ([[1.0, float("inf")], [0.0, 1.0]], "not finite"),
    ],
)
def test_what_is_no_prediction_is_refused(outputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(lambda texts: outputs)([("a",), ("b",)])


def test_something_that_does_not_predict_is_refused() -> None:
    with pytest.raises(TypeError, match="a str does not classify texts"):
        evaluate("bert-base-uncased", [INSIDE])


@pytest.fixture
def sets() -> list[TextSet]:
    made = [sentences(24, seed) for seed in (1, 2)]
    return [
        TextSet(name, role, [text for text, _ in rows], [label for _, label in rows])
        for name, role, rows in (("test", "in_distribution", made[0]), ("elsewhere", "shift", made[1]))
    ] + [TextSet("strange", "anomaly", ["film film film", "that", "this plot really"])]


def test_a_model_with_its_tokenizer_a_pipeline_and_a_function_give_the_same(
    classifier: Classifier, sets: list[TextSet]
) -> None:
    classifier.model.config.id2label = {0: "negative", 1: "positive"}
    one = evaluate((classifier.model, classifier.tokenizer), sets, attack_rows=6)
    pipe = pipeline("text-classification", model=classifier.model, tokenizer=classifier.tokenizer)
    two = evaluate(pipe, sets, attack_rows=6)
    three = evaluate(lambda texts: classifier.predict([(each,) for each in texts]), sets, attack_rows=6)
    assert set(one.labelled()["test"].groups["label"]) == {"negative", "positive"}
    assert set(three.labelled()["test"].groups["label"]) == {"0", "1"}
    assert list(one.per_set) == ["test", "elsewhere", "character_swaps", "strange"]
    for name, scores in one.labelled().items():
        for other in (two, three):
            assert other.labelled()[name].accuracy == scores.accuracy
            assert other.labelled()[name].ece_top_label == pytest.approx(scores.ece_top_label, abs=1e-5)


def test_a_pipeline_of_pairs_sees_both_texts(classifier: Classifier) -> None:
    pairs = TextSet("test", "in_distribution", [("great film", "awful plot"), ("that", "really boring story")], [0, 1])
    pipe = pipeline("text-classification", model=classifier.model, tokenizer=classifier.tokenizer)
    torch.testing.assert_close(Predictor(pipe)(pairs.rows()), classifier.predict(pairs.rows()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_models_whose_labels_do_not_exclude_each_other_are_refused(
    classifier: Classifier, sets: list[TextSet], problem: str
) -> None:
    model = BertForSequenceClassification(classifier.model.config)
    model.config.problem_type = problem
    with pytest.raises(ValueError, match="does not choose one of several labels"):
        evaluate((model, classifier.tokenizer), sets)


# --------------------------------------------------------------------------------------------------------------- attack


def test_the_attack_takes_the_same_rows_of_the_in_distribution_set_every_time(
    classifier: Classifier, sets: list[TextSet]
) -> None:
    first = evaluate(classifier, sets, attack_rows=5)
    assert first == evaluate(classifier, sets, attack_rows=5)
    swapped = first.labelled()["character_swaps"]
    assert (swapped.role, swapped.rows) == ("adversarial", 5)
    assert first.acc_adv == swapped.accuracy
    assert evaluate(classifier, sets, attack_rows=500).labelled()["character_swaps"].rows == 24


class Counting(Observer):
    """Adds up the steps of each stage."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    def stage(self, name: str, steps: int) -> None:
        self.stages[name] = [steps, 0]

    def advance(self, loss: float | None = None, *, steps: int = 1) -> None:
        self.stages[[*self.stages][-1]][1] += steps


def test_every_stage_of_the_progress_ends_where_it_said(classifier: Classifier, sets: list[TextSet]) -> None:
    observer = Counting()
    evaluate(classifier, sets, attack_rows=20, observer=observer)
    attack = {"attack: ordering words", "attack: swapping characters"}
    assert {each.name for each in sets} | attack <= set(observer.stages)
    for name, (announced, done) in observer.stages.items():
        assert announced == done, name


def test_sampled_rows_are_distinct_and_a_prefix_of_more() -> None:
    assert sampled_rows(10, 4) == sampled_rows(10, 10)[:4]
    assert sorted(sampled_rows(10, 99)) == [*range(10)]


# -------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "test"}, "role is 'test'; give one of validation"),
        ({"texts": []}, "at least one text"),
        ({"texts": "one text"}, "must be a list"),
        ({"labels": [0, 1]}, "4 texts, but 2 labels"),
        ({"labels": None}, "texts of role 'in_distribution' need labels"),
        ({"role": "anomaly"}, "texts of role 'anomaly' have no labels"),
    ],
)
def test_a_set_that_is_none_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(INSIDE, **change)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([SHIFT], "0 sets of role 'in_distribution'"),
        ([INSIDE, replace(INSIDE, name="again")], "2 sets of role 'in_distribution'"),
        ([INSIDE, replace(SHIFT, name="test")], "two sets are called 'test'"),
        ([INSIDE, replace(SHIFT, name="character_swaps")], "two sets are called 'character_swaps'"),
        ([INSIDE, replace(SHIFT, labels=[3, 0])], "set 'elsewhere', row 0: label 3, but there are 3 from 0"),
        ([INSIDE, replace(SHIFT, labels=[0, -1])], "set 'elsewhere', row 1: label -1"),
    ],
)
def test_sets_that_do_not_fit_are_refused(sets: list[TextSet], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(sureness, sets)


def test_label_names_must_be_as_many_as_outputs() -> None:
    with pytest.raises(ValueError, match="returned 3 outputs for 2 labels"):
        evaluated(INSIDE, label_names=("no", "yes"))


def in_another_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_core_does_not_import_the_evaluation(tmp_path: Path) -> None:
    code = "import sys, roast_optim; print([each for each in sys.modules if each.startswith('roast_optim.evaluation')])"
    done = in_another_process(code, tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("package", ["torchmetrics", "sklearn", "rich"])
def test_without_the_extra_the_command_that_installs_it_is_told(tmp_path: Path, package: str) -> None:
    done = in_another_process(f"import sys; sys.modules[{package!r}] = None; import roast_optim.evaluation", tmp_path)
    told = f"ImportError: roast_optim.evaluation needs {package}: pip install 'roast-optim[evaluation]'"
    assert done.stderr.strip().endswith(told)
