"""How strong the adversary is, by the size of its step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.robustness import step_sizes
from benchmarks.robustness.data import TASKS, Suite
from benchmarks.robustness.methods import create_method
from benchmarks.robustness.models import load_classifier
from benchmarks.robustness.step_sizes import measure_effect
from benchmarks.robustness.training import Recipe, train
from roast_optim.evaluation.classifier import Classifier


@pytest.fixture
def classifier(model_folder: Path, suite: Suite) -> Classifier:
    """A tiny model that has learned its task."""
    trained = load_classifier(str(model_folder), TASKS["sentiment"], 32, 0)
    train(trained, create_method("plain", suite.task, {}), suite.train, Recipe(epochs=20, learning_rate=1e-3), 0)
    return trained


def test_a_step_of_zero_changes_nothing(classifier: Classifier, suite: Suite) -> None:
    effect = measure_effect(classifier, suite.validation, 0.0)
    assert effect.relative_length == 0
    assert effect.perturbed_loss == pytest.approx(effect.loss, rel=1e-6)
    assert effect.perturbed_accuracy == effect.accuracy


def test_loss_and_accuracy_are_those_of_the_model_without_dropout(classifier: Classifier, suite: Suite) -> None:
    effect = measure_effect(classifier, suite.validation, 0.1)
    logits = classifier.predict(suite.validation.texts())
    labels = torch.tensor(suite.validation.rows["label"][:])
    assert effect.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert effect.accuracy == pytest.approx((logits.argmax(-1) == labels).double().mean().item())


def test_a_longer_step_takes_the_loss_further(classifier: Classifier, suite: Suite) -> None:
    effects = [measure_effect(classifier, suite.validation, step_size) for step_size in (0.01, 0.1, 1.0)]
    losses = [effects[0].loss, *(each.perturbed_loss for each in effects)]
    assert losses == sorted(losses)
    assert effects[-1].perturbed_accuracy < effects[0].perturbed_accuracy
    lengths = [each.relative_length / each.step_size for each in effects]
    assert lengths == pytest.approx([lengths[0]] * 3, rel=1e-3)


def test_the_length_is_that_of_a_step_whose_largest_component_is_the_step_size(
    classifier: Classifier, suite: Suite
) -> None:
    effect = measure_effect(classifier, suite.validation, 0.1)
    hidden = classifier.model.config.hidden_size
    typical = hidden**0.5  # the length of an embedding after its layer norm, whose weights are still about 1
    assert 0.1 / typical < effect.relative_length < 0.1 * hidden**0.5 / typical


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(classifier: Classifier, suite: Suite, training: bool) -> None:
    model = classifier.model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_effect(classifier, suite.validation, 0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(param.grad is None for param in model.parameters())
    for module in model.modules():
        assert module.training is training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_command_writes_a_table_of_the_model_before_and_after_training(
    model_folder: Path, sentiment_folder: Path, tmp_path: Path
) -> None:
    arguments = ["--model", str(model_folder), "--data", str(sentiment_folder), "--epochs", "1", "--train-rows", "32"]
    arguments += ["--eval-rows", "8", "--step-sizes", "0.1", "1", "--output", str(tmp_path / "out")]
    assert step_sizes.main(arguments) == 0
    (path,) = (tmp_path / "out").glob("*.md")
    rows = path.read_text().split("\n\n")[2].splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| pre-trained", "0.1"], ["| pre-trained", "1"], ["| fine-tuned", "0.1"], ["| fine-tuned", "1"],
    ]  # fmt: skip


def test_bad_arguments_are_named(tmp_path: Path, sentiment_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        step_sizes.main(["--data", str(sentiment_folder), "--set", "speed=3", "--output", str(tmp_path / "out")]) == 2
    )
    assert "plain has no option 'speed'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["-1", "nan", "inf", "long"])
def test_an_impossible_step_size_is_named(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step_sizes.main(["--step-sizes", size])
    assert f"--step-sizes: {size} is not a" in capsys.readouterr().err.replace("'", "")
