"""What other methods perturb, as settings of AdversarialEmbedding: where they are equal, and where they cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.robustness.data import TASKS, Suite, texts_of
from benchmarks.robustness.methods.candidate import Candidate
from benchmarks.robustness.methods.freelb import FreeLB
from benchmarks.robustness.methods.perturbed import word_embeddings
from benchmarks.robustness.methods.r3f import R3F
from benchmarks.robustness.methods.smart import Smart
from benchmarks.robustness.models import TrainingBatches, load_classifier
from benchmarks.robustness.training import Recipe, Training
from roast_optim import AdversarialEmbedding
from roast_optim.adversary_draws import AdversaryDraws
from roast_optim.evaluation.progress import SILENT
from tests.support.tiny_classifier import save_model


@pytest.fixture
def training(tmp_path: Path, suite: Suite) -> Training:
    """Of a model without dropout, so that two implementations can be compared."""
    folder = save_model(tmp_path / "model", dropout=0.0)
    classifier = load_classifier(str(folder), TASKS["sentiment"], 32, 0)
    batches = TrainingBatches(classifier, texts_of(suite.train), suite.train["label"][:], 16, 0)
    found = Training(classifier.model, Recipe(), batches, 0, SILENT)
    found.model.train()
    return found


@contextmanager
def word_embeddings_seen(model: nn.Module) -> Iterator[list[Tensor]]:
    """What the embedding block gets as word embeddings, in every pass: from the table, or as inputs_embeds."""
    seen: list[Tensor] = []
    block: Any = model.get_submodule("bert.embeddings")

    def watch(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("inputs_embeds") is not None:
            seen.append(kwargs["inputs_embeds"].detach())

    # The adversary's hook on the table comes before this one.
    handles = [
        block.register_forward_pre_hook(watch, with_kwargs=True),
        block.word_embeddings.register_forward_hook(lambda *call: seen.append(call[-1].detach())),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def perturbation(training: Training, batch: dict[str, Tensor], adversary: AdversarialEmbedding) -> Tensor:
    """What the adversary adds to the word embeddings in its last pass."""
    with word_embeddings_seen(training.model) as seen:
        adversary(**batch)
    return seen[-1] - word_embeddings(training.model, batch).detach()


def first_batch(training: Training) -> dict[str, Tensor]:
    return next(training.batches.epoch(0))


def as_noise(monkeypatch: pytest.MonkeyPatch, name: str, values: Tensor) -> None:
    """Let a function that draws random numbers return these."""
    owner = torch if hasattr(torch, name) else torch.Tensor
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: values.clone())


def test_smarts_perturbation_is_a_consistency_adversary_on_the_word_table(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = Smart(), first_batch(training)
    method.before_training(training)
    embeddings = word_embeddings(training.model, batch).detach()
    adversary = AdversarialEmbedding(
        training.model, method.step_size, method.smoothness_weight, adversarial_weight=0.0, embedding="word",
        direction="consistency", start_noise=method.noise,
    )  # fmt: skip
    # The start is uniform there and normal here, of one size: the same numbers are given to both.
    start = AdversaryDraws(0).start_noise(embeddings, method.noise, both_signs=True)
    actual = perturbation(training, batch, adversary)
    own = adversary.last_losses["task"] + method.smoothness_weight * adversary.last_losses["consistency"]
    adversary.close()
    as_noise(monkeypatch, "randn_like", start / method.noise)
    with word_embeddings_seen(training.model) as seen:
        whole = method.loss(training, batch)
    expected = next(each for each in reversed(seen) if (each - embeddings).abs().amax() > 1e-4) - embeddings
    tokens = batch["attention_mask"].bool()
    # In float32, at a step of 1e-3 from embeddings of about 0.04.
    torch.testing.assert_close(actual[tokens], expected[tokens], rtol=1e-3, atol=2e-8)
    assert actual[tokens].abs().amax() == pytest.approx(method.step_size, rel=1e-4)
    # At the first step the averaged model is the model itself, and adds nothing.
    torch.testing.assert_close(own, whole.detach(), rtol=1e-5, atol=1e-7)


def test_r3fs_perturbation_is_noise_on_the_word_table(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = R3F(noise=1e-2), first_batch(training)
    embeddings = word_embeddings(training.model, batch).detach()
    adversary = AdversarialEmbedding(
        training.model, method.noise, method.consistency_weight, adversarial_weight=0.0, embedding="word",
        direction="noise",
    )  # fmt: skip
    noise = AdversaryDraws(0).noise(embeddings) * method.noise
    actual = perturbation(training, batch, adversary)
    adversary.load_state_dict({"calls": 0})
    loss = adversary(**batch).loss
    loss.backward()
    table = training.model.get_input_embeddings().weight
    own = {name: each.grad for name, each in training.model.named_parameters() if each.grad is not None}
    training.model.zero_grad()
    adversary.close()
    as_noise(monkeypatch, "uniform_", noise)
    with word_embeddings_seen(training.model) as seen:
        whole = method.loss(training, batch)
    tokens = batch["attention_mask"].bool()
    torch.testing.assert_close(actual[tokens], (seen[-1] - embeddings)[tokens], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=1e-7)
    whole.backward()
    for name, each in training.model.named_parameters():
        if each is table or each.grad is None:
            continue
        torch.testing.assert_close(own[name], each.grad, rtol=1e-4, atol=1e-6, msg=name)
    # What differs: R3F differentiates the noisy pass with respect to the table as well; here it is a constant.
    assert table.grad is not None
    assert not torch.allclose(own["bert.embeddings.word_embeddings.weight"], table.grad, rtol=1e-3, atol=1e-6)


def test_freelbs_ascents_are_along_the_same_gradients_but_share_their_length_among_a_text(training: Training) -> None:
    """Which is why it is no setting: one length for all tokens of a text, a start that stays in the perturbation, and
    the mean of the losses of all ascents.
    """
    method, batch = FreeLB(steps=2), first_batch(training)
    embeddings = word_embeddings(training.model, batch).detach()
    tokens = batch["attention_mask"].bool()
    adversary = AdversarialEmbedding(
        training.model, method.step_size, 0.0, norm="l2", embedding="word", ascents=method.steps - 1
    )
    actual = perturbation(training, batch, adversary)
    adversary.close()
    delta = torch.zeros_like(embeddings).requires_grad_()
    method.perturbed_loss(training, batch, delta).backward()
    assert delta.grad is not None
    expected = method.ascend(delta.detach(), delta.grad)
    cosine = torch.nn.functional.cosine_similarity(actual, expected, dim=-1)[tokens]
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-4)
    step = method.step_size
    torch.testing.assert_close(actual.norm(dim=-1)[tokens], torch.full_like(cosine, step), rtol=1e-4, atol=0)
    per_text = expected.norm(dim=(1, 2))
    torch.testing.assert_close(per_text, torch.full_like(per_text, step), rtol=1e-4, atol=0)


@pytest.mark.parametrize("ramp", [(0.0, 0.0), (0.25, 0.75)])
def test_a_candidates_constant_step_is_a_relative_one_along_a_ramp(
    training: Training, ramp: tuple[float, float]
) -> None:
    begin, end = ramp
    method = Candidate(step_size=0.05, ramp_begin=begin, ramp_end=end, consistency_weight=0.5)
    method.build(training)
    steps = training.total_steps
    adversary = AdversarialEmbedding(
        training.model, 0.05, 0.5, norm="l2", scale="relative", ramp=(begin * steps, end * steps)
    )
    batch = first_batch(training)
    losses = []
    for step in (0, steps // 4, steps // 2, steps - 1):
        training.step = step
        expected = method.loss(training, batch)
        adversary.load_state_dict({"calls": step})
        assert adversary.height == pytest.approx(method.height(training))
        losses.append(expected.item())
        torch.testing.assert_close(adversary(**batch).loss, expected, rtol=1e-5, atol=1e-6)
    assert len(set(losses)) == (1 if begin == end else 3)
    method.after_training(training)
