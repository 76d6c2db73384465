"""What other methods do with the weights, as settings of RoastAdamW."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.robustness.data import TASKS, Suite, texts_of
from benchmarks.robustness.methods.child_tuning import ChildTuningDriven
from benchmarks.robustness.methods.weight_consolidation import WeightConsolidation
from benchmarks.robustness.models import TrainingBatches, load_classifier
from benchmarks.robustness.training import Method, Recipe, Training
from roast_optim import RoastAdamW
from roast_optim.evaluation.progress import SILENT
from tests.support.tiny_classifier import save_model

RECIPE = Recipe(learning_rate=1e-3, weight_decay=0.05)


def training_of(folder: Path, suite: Suite, recipe: Recipe = RECIPE) -> Training:
    classifier = load_classifier(str(folder), TASKS["sentiment"], 32, 0)
    batches = TrainingBatches(classifier, texts_of(suite.train), suite.train["label"][:], 16, 0)
    found = Training(classifier.model, recipe, batches, 0, SILENT)
    found.model.train()
    return found


def weights(training: Training) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in training.model.named_parameters()}


def take_steps(training: Training, optimizer: Optimizer, method: Method | None = None) -> None:
    for batch in training.batches.epoch(0):
        training.task_loss(batch).backward()  # type: ignore[no-untyped-call]
        if method is not None:
            method.after_backward(training)
        optimizer.step()
        if method is not None:
            method.after_step(training)
        optimizer.zero_grad()


def roast_adamw(training: Training, lr: float, **options: Any) -> RoastAdamW:
    """All of the pre-trained model in one group with the options, the head in another without them."""
    pretrained = [*training.model.base_model.parameters()]
    known = set(pretrained)
    head = [param for param in training.model.parameters() if param not in known]
    recipe = training.recipe
    return RoastAdamW(
        [{"params": pretrained, "selective": True, **options.pop("group", {})}, {"params": head, "selective": False}],
        lr=lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay, **options,
    )  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", dropout=0.0)


def test_wconsol_is_a_decay_towards_the_pretrained_weights(model: Path, suite: Suite) -> None:
    """It pulls after the step, so that it is one with the learning rate r (1 - r c) and the strength c / (1 - r c)."""
    method, rate = WeightConsolidation(strength=100.0), RECIPE.learning_rate
    theirs = training_of(model, suite, replace(RECIPE, weight_decay=0.0))
    theirs.optimizer = method.build(theirs)
    method.before_training(theirs)
    before = weights(theirs)
    take_steps(theirs, theirs.optimizer, method)
    ours = training_of(model, suite, replace(RECIPE, weight_decay=0.0))
    share = rate * method.strength
    pull = {"pretrained_decay": method.strength / (1 - share), "lr": rate * (1 - share), "selective": False}
    take_steps(ours, roast_adamw(ours, rate, group=pull))
    expected = weights(theirs)
    moved = max(float((expected[name] - before[name]).abs().max()) for name in expected)
    for name, values in weights(ours).items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=2e-3 * moved, msg=name)
    plain = training_of(model, suite, replace(RECIPE, weight_decay=0.0))
    take_steps(plain, roast_adamw(plain, rate))
    assert max(float((values - expected[name]).abs().max()) for name, values in weights(plain).items()) > 0.1 * moved


def test_childtuning_d_is_a_threshold_on_importance_measured_before(model: Path, suite: Suite) -> None:
    method = ChildTuningDriven(kept_share=0.3)
    theirs = training_of(model, suite)
    theirs.optimizer = method.build(theirs)
    method.before_training(theirs)
    ours = training_of(model, suite, replace(RECIPE, weight_decay=0.0))
    optimizer = roast_adamw(ours, 1e-3, alpha=0.7, beta=1e4, rescale=False, refresh_every=None)
    with optimizer.measure_importance():
        take_steps(ours, optimizer)
    optimizer.refresh()
    before = weights(ours)
    batch = next(ours.batches.epoch(0))
    ours.task_loss(batch).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    masks = {name: method.masks[param] for name, param in theirs.model.named_parameters() if param in method.masks}
    alike = total = kept = 0
    for name, param in ours.model.named_parameters():
        if name in masks and param.grad is not None:
            moved = param.detach() != before[name]
            touched = param.grad != 0
            alike += int((moved == (masks[name] & touched)).sum())
            kept += int(masks[name].sum())
            total += moved.numel()
    assert 0.25 < kept / total < 0.35
    assert alike / total > 1 - 1 / 256  # ranks have 256 steps
