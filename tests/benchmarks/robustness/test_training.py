"""The loop: every method goes through it, and what is switched off does nothing at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.robustness import training
from benchmarks.robustness.data import TASKS, Suite, texts_of
from benchmarks.robustness.methods import METHODS, create_method, option_names
from benchmarks.robustness.methods.smart import Smart
from benchmarks.robustness.models import TrainingBatches, load_classifier
from benchmarks.robustness.training import Method, Recipe, Training, train
from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.progress import SILENT, Observer

SENTIMENT = TASKS["sentiment"]
RECIPE = Recipe(epochs=2, learning_rate=1e-3)


class Recorder(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.losses: list[float] = []

    def stage(self, name: str, steps: int) -> None:
        self.stages.append((name, steps))

    def advance(self, loss: float | None = None) -> None:
        assert loss is not None
        self.losses.append(loss)


def trained(model: Path, suite: Suite, name: str, seed: int = 0, **options: Any) -> dict[str, Tensor]:
    """The weights after training with a method."""
    classifier = load_classifier(str(model), SENTIMENT, 32, seed)
    train(classifier, create_method(name, SENTIMENT, options), suite.train, RECIPE, seed)
    return dict(classifier.model.state_dict())


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_plain_is_what_a_hand_written_loop_does(model_folder: Path, suite: Suite) -> None:
    classifier = load_classifier(str(model_folder), SENTIMENT, 32, 0)
    model = classifier.model
    batches = TrainingBatches(classifier, texts_of(suite.train),
                              suite.train["label"][:], RECIPE.batch_size, 0)  # fmt: skip
    no_decay = [p for n, p in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    decay = [p for n, p in model.named_parameters() if not (n.endswith("bias") or "LayerNorm" in n)]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}],
        lr=1e-3, betas=(0.9, 0.98), eps=1e-6,
    )  # fmt: skip
    total = 2 * len(batches)
    warmup = math.ceil(0.06 * total)
    torch.manual_seed(0)
    model.train()
    for step, batch in enumerate(each for epoch in range(2) for each in batches.epoch(epoch)):
        rate = step / warmup if step < warmup else (total - step) / (total - warmup)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    result = trained(model_folder, suite, "plain")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(result[name], value, rtol=1e-5, atol=1e-7)


@pytest.fixture
def unfused_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW whose rounding is the reference backend's: one operation after the other."""
    monkeypatch.setattr(training, "AdamW", lambda *args, fused, **options: torch.optim.AdamW(*args, **options))


@pytest.mark.usefixtures("unfused_adamw")
def test_roast_with_everything_off_is_plain_bit_for_bit(model_folder: Path, suite: Suite) -> None:
    off: dict[str, Any] = {
        "backend": "reference",
        "selective": False,
        "adversarial_weight": 0.0,
        "consistency_weight": 0.0,
    }
    assert equal(trained(model_folder, suite, "roast", **off), trained(model_folder, suite, "plain"))


@pytest.mark.usefixtures("unfused_adamw")
def test_each_half_of_roast_is_roast_with_the_other_half_off(model_folder: Path, suite: Suite) -> None:
    advembed = trained(model_folder, suite, "advembed")
    assert equal(trained(model_folder, suite, "roast", selective=False, backend="reference"), advembed)
    selective = trained(model_folder, suite, "selective")
    assert equal(trained(model_folder, suite, "roast", adversarial_weight=0.0, consistency_weight=0.0), selective)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_a_seed_decides_the_result(model_folder: Path, suite: Suite, name: str) -> None:
    # So short a training would end before the first ranks.
    options = {"refresh_every": 2} if "refresh_every" in option_names(name) else {}
    first = trained(model_folder, suite, name, **options)
    assert all(torch.isfinite(value).all() for value in first.values() if value.is_floating_point())
    torch.rand(7)
    assert equal(first, trained(model_folder, suite, name, **options))
    assert not equal(first, trained(model_folder, suite, name, seed=1, **options))
    if name != "plain":
        assert not equal(first, trained(model_folder, suite, "plain"))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_paper_and_leaves_no_hook(model_folder: Path, suite: Suite, name: str) -> None:
    method = create_method(name, SENTIMENT, {})
    assert method.paper
    classifier = load_classifier(str(model_folder), SENTIMENT, 32, 0)
    train(classifier, method, suite.train, Recipe(epochs=1), 0)
    for module in classifier.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_weight_consolidation_pulls_towards_the_pretrained_weights(model_folder: Path, suite: Suite) -> None:
    start = dict(load_classifier(str(model_folder), SENTIMENT, 32, 0).model.state_dict())

    def distance(weights: dict[str, Tensor]) -> float:
        return math.sqrt(sum(float((weights[n] - start[n]).square().sum()) for n in start if n.startswith("bert.")))

    free = distance(trained(model_folder, suite, "plain"))
    assert distance(trained(model_folder, suite, "wconsol", strength=100.0)) < 0.9 * free
    assert distance(trained(model_folder, suite, "wconsol", strength=1e9)) == pytest.approx(0, abs=1e-6)


def begun(model: Path, suite: Suite, name: str, **options: Any) -> tuple[Method, Training, dict[str, Tensor]]:
    """A method ready for its first step, its training, and the first batch."""
    classifier = load_classifier(str(model), SENTIMENT, 32, 0)
    batches = TrainingBatches(classifier, texts_of(suite.train), suite.train["label"][:], 16, 0)
    method, training = create_method(name, SENTIMENT, options), Training(classifier.model, RECIPE, batches, 0, SILENT)
    training.model.train()
    training.optimizer = method.build(training)
    method.before_training(training)
    return method, training, next(iter(batches.epoch(0)))


def test_freelb_has_one_dropout_in_all_passes_of_a_step(model_folder: Path, suite: Suite) -> None:
    gradients = []
    for steps in (1, 3):  # three passes that do not move are one, if nothing else differs
        method, training, batch = begun(model_folder, suite, "freelb", steps=steps, step_size=0.0, largest=1e-30)
        torch.manual_seed(0)
        method.loss(training, batch).backward()
        gradients.append({name: param.grad for name, param in training.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_smart_averages_over_more_steps_after_the_first_tenth(model_folder: Path, suite: Suite) -> None:
    method, training, _ = begun(model_folder, suite, "smart")
    assert isinstance(method, Smart)
    assert method.average is not None
    kept, current = method.average.classifier.weight, training.model.classifier.weight
    for step, share in ((0, 0.01), (training.total_steps, 0.001)):
        training.step = step
        before = kept.clone()
        with torch.no_grad():
            current += 1
        method.after_step(training)
        torch.testing.assert_close(kept, before + share * (current - before))


def test_roast_measures_importance_before_the_first_step(model_folder: Path, suite: Suite) -> None:
    recorder = Recorder()
    classifier = load_classifier(str(model_folder), SENTIMENT, 32, 0)
    train(classifier, create_method("roast", SENTIMENT, {}), suite.train, RECIPE, 0, recorder)
    assert recorder.stages == [("importance", 4), ("training", 8)]
    assert len(recorder.losses) == 12


def test_the_paper_has_other_settings_for_entailment() -> None:
    options = create_method("roast", TASKS["entailment"], {}).options()
    assert (options["alpha"], options["beta"]) == (0.6, 1.0)
    options = create_method("roast", SENTIMENT, {"beta": 5.0}).options()
    assert (options["alpha"], options["beta"]) == (0.9, 5.0)


def test_every_option_is_reported() -> None:
    for name in METHODS:
        assert list(create_method(name, SENTIMENT, {}).options()) == option_names(name)


def test_unknown_methods_and_options_are_named() -> None:
    with pytest.raises(UserError, match="method 'toast' is unknown; known: plain, "):
        create_method("toast", SENTIMENT, {})
    with pytest.raises(UserError, match="method 'plain' has no option 'alpha'; it has none"):
        create_method("plain", SENTIMENT, {"alpha": 0.5})


@pytest.mark.parametrize("name", METHODS)
def test_in_bfloat16_every_method_starts_from_losses_close_to_those_in_float32(
    model_folder: Path, suite: Suite, name: str
) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        recorder = Recorder()
        classifier = load_classifier(str(model_folder), SENTIMENT, 32, 0)
        recipe = Recipe(epochs=1, learning_rate=1e-3, precision=precision)
        train(classifier, create_method(name, SENTIMENT, {}), suite.train, recipe, 0, recorder)
        losses[precision] = recorder.losses
        assert {param.dtype for param in classifier.model.parameters()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0; give a whole number from 1"),
        ({"batch_size": "many"}, "batch_size is 'many'; give a whole number from 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5; give a whole number from 1"),
        ({"learning_rate": -1}, "learning_rate is -1; give a number from 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; give a number from 0"),
        ({"weight_decay": True}, "weight_decay is True; give a number from 0"),
        ({"warmup_share": 1.5}, "warmup_share is 1.5; give a number from 0 to 1"),
        ({"betas": 0.9}, "betas is 0.9; give a list"),
        ({"betas": [0.9]}, r"betas is \[0.9\]; give two numbers from 0 to less than 1"),
        ({"betas": [0.9, 1]}, r"betas is \[0.9, 1\]; give two numbers"),
        ({"precision": "float16"}, "precision 'float16' is unknown; known: float32, bfloat16"),
    ],
    ids=lambda each: "-".join(map(str, each.items())) if isinstance(each, dict) else "",
)
def test_an_impossible_recipe_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe(**change)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("roast", {"alpha": "much"}, "method 'roast': alpha is 'much'; give a number"),
        ("roast", {"rescale": 1}, "method 'roast': rescale is 1; give true or false"),
        ("roast", {"norm": 2}, "method 'roast': norm is 2; give a word"),
        ("roast", {"embedding": 2}, "method 'roast': embedding is 2; give a word or null"),
        ("freelb", {"steps": 0}, "method 'freelb': steps is 0; give a whole number from 1"),
        ("child_tuning_f", {"keep_probability": 0}, "keep_probability is 0; give a number from 0.001 to 1"),
        ("child_tuning_d", {"kept_share": 2}, "kept_share is 2; give a number from 0 to 1"),
        ("word_dropout", {"probability": -0.1}, "probability is -0.1; give a number from 0 to 1"),
        ("wconsol", {"strength": math.inf}, "strength is inf; give a number from 0"),
    ],
)
def test_an_impossible_option_of_a_method_is_named(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_method(name, SENTIMENT, change)


class Diverging(Method):
    """A method whose loss is not a number from the third step on."""

    paper = "none"
    stopped = False

    def loss(self, training: Training, batch: dict[str, Tensor]) -> Tensor:
        return super().loss(training, batch) * (math.nan if training.step >= 2 else 1.0)

    def after_training(self, training: Training) -> None:
        self.stopped = True


def test_a_loss_that_is_not_finite_stops_the_training(model_folder: Path, suite: Suite) -> None:
    method = Diverging()
    classifier = load_classifier(str(model_folder), SENTIMENT, 32, 0)
    with pytest.raises(UserError, match="the loss is nan at step 2"):
        train(classifier, method, suite.train, RECIPE, 0)
    assert method.stopped
