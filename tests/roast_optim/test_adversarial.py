"""The objective of AdversarialEmbedding equals the formula, on every architecture and with every option."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from roast_optim import adversarial
from roast_optim.adversarial import AdversarialEmbedding
from roast_optim.perturbation import relative_length
from tests.models import ARCHITECTURES, Architecture, PlainClassifier
from tests.oracles.objective import Objective, counted_rows, objective, symmetric_divergence

# A power of two: the oracle, which divides in float64, and the package then perturb bit for bit alike, and no
# bfloat16 rounding of the passes turns out differently.
STEP_SIZE = 0.25


@dataclass(frozen=True)
class Precision:
    """How the passes run, and how far gradients may be from the formula's, over the largest one.

    Under autocast, what is converted to bfloat16 once for both passes also sums the gradients of both in it.
    """

    context: Callable[[], AbstractContextManager[Any]]
    gradient_tolerance: float


PRECISIONS = {
    "float32": Precision(nullcontext, 1e-5),
    "bfloat16_autocast": Precision(lambda: torch.autocast("cpu", torch.bfloat16), 2.0**-6),
}

architectures = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
precisions = pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS.keys())


def expected_objective(
    architecture: Architecture, model: nn.Module, batch: dict[str, Tensor], **options: Any
) -> Objective:
    """The oracle's, with what is known of the architecture."""

    def distance(clean_logits: Tensor, logits: Tensor) -> Tensor:
        rows = symmetric_divergence(clean_logits, logits)
        if architecture.labels == "class":
            return rows.mean()
        return rows[counted_rows(batch["labels"], predicts_next=architecture.predicts_next)].mean()

    tokens = batch["attention_mask"].bool()
    return objective(
        model,
        batch,
        model.get_submodule(architecture.embedding),
        **{
            "step_size": STEP_SIZE,
            "perturbed": tokens.T if architecture.tokens_first else tokens,
            "distance": distance,
            **options,
        },
    )


def assert_losses_equal(adversary: AdversarialEmbedding, expected: Objective) -> None:
    for name in ("task", "adversarial", "consistency"):
        torch.testing.assert_close(
            adversary.last_losses[name], getattr(expected, name), rtol=1e-5, atol=1e-6, check_dtype=False
        )
        assert not adversary.last_losses[name].requires_grad


def assert_gradients_equal(loss: Tensor, expected: Tensor, model: nn.Module, tolerance: float = 1e-5) -> None:
    """Those of all parameters, up to ``tolerance`` times the largest gradient of the model."""
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6, check_dtype=False)
    parameters = list(model.parameters())
    actual = torch.autograd.grad(loss, parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    scale = max(float(gradient.abs().max()) for gradient in wanted if gradient is not None)
    assert scale > 0
    for first, second in zip(actual, wanted, strict=True):
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            torch.testing.assert_close(first, second, rtol=0, atol=tolerance * scale)


@architectures
@precisions
@pytest.mark.parametrize("gradient", ["exact", "fast"])
def test_objective_and_its_gradients_equal_the_formula(
    architecture: Architecture, precision: Precision, gradient: str
) -> None:
    model, batch = architecture.model(), architecture.batch()
    adversary = AdversarialEmbedding(model, STEP_SIZE, consistency_weight=0.5, gradient=gradient)
    with precision.context():
        loss = adversary(**batch).loss
        expected = expected_objective(architecture, model, batch, clean_side_is_constant=gradient == "fast")
    assert_losses_equal(adversary, expected)
    assert expected.adversarial > expected.task
    assert_gradients_equal(loss, expected.total(0.5), model, precision.gradient_tolerance)


@architectures
def test_perturbs_the_embedding_block(architecture: Architecture) -> None:
    assert AdversarialEmbedding(architecture.model()).embedding_name == architecture.embedding


@architectures
@precisions
def test_in_evaluation_mode_it_is_the_model_bit_for_bit(architecture: Architecture, precision: Precision) -> None:
    model, batch = architecture.model().eval(), architecture.batch()
    with precision.context(), torch.no_grad():
        expected = model(**batch)
        actual = AdversarialEmbedding(model)(**batch)
    assert type(actual) is type(expected)
    assert torch.equal(actual.loss, expected.loss)
    assert torch.equal(actual.logits, expected.logits)


def test_a_forgotten_training_mode_is_said_once() -> None:
    model, batch = ARCHITECTURES["bert"].model().eval(), ARCHITECTURES["bert"].batch()
    adversary = AdversarialEmbedding(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            adversary(**batch)
    with pytest.warns(UserWarning, match=r"evaluation mode.*model\.train\(\)") as caught:
        losses = [adversary(**batch).loss for _ in range(2)]
    assert [warning.filename for warning in caught] == [__file__]
    assert torch.equal(losses[1], model(**batch).loss)


def test_without_gradients_it_is_the_model_though_in_training_mode() -> None:
    model, batch = ARCHITECTURES["bert"].model(), ARCHITECTURES["bert"].batch()
    adversary = AdversarialEmbedding(model)
    with torch.no_grad():
        assert torch.equal(adversary(**batch).loss, model(**batch).loss)
    assert adversary.last_losses == {}


@pytest.mark.parametrize("name", ["bert", "xlnet", "t5_classification", "bart", "gpt2"])
def test_word_embeddings_can_be_perturbed(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model, batch = architecture.model(), architecture.batch()
    adversary = AdversarialEmbedding(model, STEP_SIZE, 0.5, embedding="word")
    table = model.get_submodule(adversary.embedding_name)
    assert isinstance(table, nn.Embedding)
    assert table.weight.shape[0] == model.config.vocab_size
    loss = adversary(**batch).loss
    tokens = batch["attention_mask"].bool()
    expected = objective(
        model, batch, table, step_size=STEP_SIZE, perturbed=tokens.T if architecture.tokens_first else tokens
    )
    assert_gradients_equal(loss, expected.total(0.5), model)


def test_any_module_can_be_perturbed() -> None:
    architecture = ARCHITECTURES["bert"]
    model, batch = architecture.model(), architecture.batch()
    module = model.bert.embeddings.LayerNorm
    loss = AdversarialEmbedding(model, STEP_SIZE, 0.5, embedding=module)(**batch).loss
    expected = objective(model, batch, module, step_size=STEP_SIZE, perturbed=batch["attention_mask"].bool())
    assert_gradients_equal(loss, expected.total(0.5), model)


@pytest.mark.parametrize("norm", ["linf", "sign", "l2"])
def test_norms(norm: str) -> None:
    architecture = ARCHITECTURES["bert"]
    model, batch = architecture.model(), architecture.batch()
    loss = AdversarialEmbedding(model, STEP_SIZE, 0.5, norm=norm)(**batch).loss
    assert_gradients_equal(loss, expected_objective(architecture, model, batch, norm=norm).total(0.5), model)


@pytest.mark.parametrize("gradient", ["exact", "fast"])
def test_weights_of_the_three_losses(gradient: str) -> None:
    architecture = ARCHITECTURES["bert"]
    model, batch = architecture.model(), architecture.batch()
    adversary = AdversarialEmbedding(
        model, STEP_SIZE, 0.5, adversarial_weight=0.25, clean_weight=0.75, gradient=gradient
    )
    loss = adversary(**batch).loss
    expected = expected_objective(architecture, model, batch, clean_side_is_constant=gradient == "fast")
    assert_losses_equal(adversary, expected)
    assert_gradients_equal(loss, expected.total(0.5, 0.25, 0.75), model)


@pytest.mark.parametrize("gradient", ["exact", "fast"])
def test_a_step_of_zero_gives_twice_the_task_loss(gradient: str) -> None:
    architecture = ARCHITECTURES["bert"]
    model, batch = architecture.model(), architecture.batch()
    adversary = AdversarialEmbedding(model, step_size=0.0, gradient=gradient)
    loss = adversary(**batch).loss
    assert torch.equal(adversary.last_losses["adversarial"], adversary.last_losses["task"])
    assert adversary.last_losses["consistency"] == 0.0
    torch.testing.assert_close(loss, 2 * model(**batch).loss)


def test_padding_is_not_perturbed() -> None:
    model, batch = ARCHITECTURES["bert"].model(), ARCHITECTURES["bert"].batch()
    adversary = AdversarialEmbedding(model, step_size=0.1)
    seen: list[Tensor] = []
    model.bert.embeddings.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    adversary(**batch)
    clean, perturbed = seen
    torch.testing.assert_close((perturbed - clean).abs().amax(-1), 0.1 * batch["attention_mask"])


@pytest.mark.parametrize("name", ["xlnet", "bert"])
def test_padding_is_found_when_there_are_as_many_samples_as_tokens(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model, batch = architecture.model(), architecture.batch(samples=5, tokens=5)
    loss = AdversarialEmbedding(model, STEP_SIZE, 0.5)(**batch).loss
    assert_gradients_equal(loss, expected_objective(architecture, model, batch).total(0.5), model)


@pytest.mark.parametrize("positions", ["keyword", "position"])
def test_arguments_are_found_wherever_they_are(positions: str) -> None:
    architecture = ARCHITECTURES["bert"]
    model, batch = architecture.model(), architecture.batch()
    adversary = AdversarialEmbedding(model, STEP_SIZE, 0.5)
    if positions == "position":
        loss = adversary(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss
    else:
        loss = adversary(**batch).loss
    torch.testing.assert_close(loss, expected_objective(architecture, model, batch).total(0.5), check_dtype=False)


@pytest.mark.parametrize(
    "name", ["bert", "gpt2", "llama", "xlnet", "t5_sequence_to_sequence", "bart_sequence_to_sequence"]
)
@pytest.mark.parametrize("embedding", [None, "word"], ids=["block", "word"])
@pytest.mark.parametrize("gradient", ["exact", "fast"])
def test_inputs_embeds_in_place_of_tokens(name: str, embedding: str | None, gradient: str) -> None:
    """The same objective, and the gradient of the embeddings arrives at what was passed."""
    architecture = ARCHITECTURES[name]
    model, batch = architecture.model(), architecture.batch()
    adversary = AdversarialEmbedding(model, STEP_SIZE, 0.5, embedding=embedding, gradient=gradient)
    table = model.get_submodule(AdversarialEmbedding(model, embedding="word").embedding_name)
    expected = adversary(**batch).loss
    ids = batch.pop("input_ids")
    embeds = table(ids).detach().requires_grad_()
    actual = adversary(inputs_embeds=embeds, **batch).loss
    if name in ("gpt2", "llama"):  # they classify the last position, not seeing where the padding begins
        assert torch.isfinite(actual)
    else:
        torch.testing.assert_close(actual, expected)
    actual.backward()
    assert embeds.grad is not None
    assert embeds.grad[batch["attention_mask"].bool()].abs().sum() > 0


@pytest.mark.parametrize("name", ["xlnet", "llama"])
def test_padding_of_inputs_embeds_is_found_when_there_are_as_many_samples_as_tokens(name: str) -> None:
    """Though XLNet's table returns tokens first, what takes its place has samples first."""
    architecture = ARCHITECTURES[name]
    model, batch = architecture.model(), architecture.batch(samples=5, tokens=5)
    table = model.get_input_embeddings()
    embeds = table(batch.pop("input_ids")).detach()
    adversary = AdversarialEmbedding(model, step_size=0.5)
    seen: list[Tensor] = []
    forward = model.forward

    def record(**kwargs: Any) -> Any:
        seen.append(kwargs["inputs_embeds"].detach())
        return forward(**kwargs)

    model.forward = record
    adversary(inputs_embeds=embeds, **batch)
    moved = (seen[1] - seen[0]).abs().amax(-1)
    assert not moved[batch["attention_mask"] == 0].any()
    assert moved.any()


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("gradient", ["exact", "fast"])
def test_gradients_reach_what_the_inputs_were_computed_from(name: str, gradient: str) -> None:
    """Such as the table itself, looked up by the caller: once, and not again for its being a parameter."""
    architecture = ARCHITECTURES[name]
    model, batch = architecture.model(), architecture.batch()
    table = model.get_input_embeddings()
    ids = batch.pop("input_ids")
    AdversarialEmbedding(model, STEP_SIZE, 0.0, gradient=gradient)(inputs_embeds=table(ids), **batch).loss.backward()
    expected = torch.autograd.grad(model(inputs_embeds=table(ids), **batch).loss, table.weight)[0]
    torch.testing.assert_close(table.weight.grad, expected, rtol=1e-4, atol=1e-6)


def regression_model() -> nn.Module:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=1,
        )
    ).train()  # fmt: skip


def test_regression_takes_the_squared_error() -> None:
    model, batch = regression_model(), ARCHITECTURES["bert"].batch()
    batch["labels"] = torch.randn(3)
    loss = AdversarialEmbedding(model, STEP_SIZE, 0.5)(**batch).loss
    expected = objective(
        model,
        batch,
        model.bert.embeddings,
        step_size=STEP_SIZE,
        perturbed=batch["attention_mask"].bool(),
        distance=lambda first, second: ((first - second) ** 2).mean(),
    )
    assert_gradients_equal(loss, expected.total(0.5), model)


def test_several_binary_labels_are_independent() -> None:
    """Each is a distribution of its own: the same as two classes with logits (x, 0)."""
    model, batch = ARCHITECTURES["bert"].model(), ARCHITECTURES["bert"].batch()
    batch["labels"] = torch.randint(0, 2, (3, 3)).float()
    loss = AdversarialEmbedding(model, STEP_SIZE, 0.5)(**batch).loss
    assert model.config.problem_type == "multi_label_classification"

    def distance(first: Tensor, second: Tensor) -> Tensor:
        pairs = [torch.stack([logits, torch.zeros_like(logits)], -1) for logits in (first, second)]
        return symmetric_divergence(*pairs).sum(-1).mean()

    expected = objective(
        model,
        batch,
        model.bert.embeddings,
        step_size=STEP_SIZE,
        perturbed=batch["attention_mask"].bool(),
        distance=distance,
    )
    assert_gradients_equal(loss, expected.total(0.5), model)


@pytest.mark.parametrize("name", ["modernbert_masked_language_model", "gpt2_language_model"])
@pytest.mark.parametrize("num_items", [50, torch.tensor(50)], ids=["int", "tensor"])
@pytest.mark.parametrize("gradient", ["exact", "fast"])
def test_consistency_is_divided_by_num_items_where_the_task_loss_is(
    name: str, num_items: int | Tensor, gradient: str
) -> None:
    architecture = ARCHITECTURES[name]
    model, batch = architecture.model(), architecture.batch()
    adversary = AdversarialEmbedding(model, STEP_SIZE, 0.5, gradient=gradient)
    adversary(**batch)
    means = adversary.last_losses
    loss = adversary(**batch, num_items_in_batch=num_items).loss
    counted = counted_rows(batch["labels"], predicts_next=architecture.predicts_next).sum()
    for name, mean in means.items():
        torch.testing.assert_close(adversary.last_losses[name], mean * counted / 50)
    loss.backward()


def test_consistency_is_a_mean_where_the_model_ignores_num_items() -> None:
    architecture = ARCHITECTURES["bert"]
    model, batch = architecture.model(), architecture.batch()
    adversary = AdversarialEmbedding(model, STEP_SIZE, 0.5)
    expected = adversary(**batch).loss
    torch.testing.assert_close(adversary(**batch, num_items_in_batch=50).loss, expected)


@pytest.mark.parametrize("scale", [2.0**-20, 1.0, 3e4])
def test_perturbation_does_not_depend_on_the_scale_of_the_loss(scale: float) -> None:
    model = PlainClassifier()
    batch = ARCHITECTURES["bert"].batch()
    adversary = AdversarialEmbedding(model, loss_fn=lambda output, labels: scale * F.cross_entropy(output, labels))
    adversary(**batch)
    adversarial_loss = adversary.last_losses["adversarial"] / scale
    expected = objective(
        model,
        {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]},
        model.embedding,
        loss_and_logits=lambda output: (F.cross_entropy(output, batch["labels"]), output),
        perturbed=batch["attention_mask"].bool(),
    )
    torch.testing.assert_close(adversarial_loss, expected.adversarial, rtol=1e-5, atol=1e-6)


def test_float16_gradients_do_not_underflow() -> None:
    """A loss so small that its gradients are zero in float16 is perturbed all the same."""
    model = PlainClassifier()
    batch = ARCHITECTURES["bert"].batch()
    adversary = AdversarialEmbedding(
        model, loss_fn=lambda output, labels: 1e-6 * F.cross_entropy(output.float(), labels)
    )
    with torch.autocast("cpu", torch.float16):
        adversary(**batch)
    assert adversary.last_losses["adversarial"] > adversary.last_losses["task"]


@pytest.mark.parametrize(("start_noise", "passes"), [(0.0, 2), (1e-5, 3)])
def test_random_state_advances_by_the_dropout_of_the_passes_alone(start_noise: float, passes: int) -> None:
    model, batch = ARCHITECTURES["bert"].model(dropout=0.5), ARCHITECTURES["bert"].batch()
    torch.manual_seed(7)
    adversary = AdversarialEmbedding(model, start_noise=start_noise)
    adversary(**batch)
    actual = torch.get_rng_state()
    torch.manual_seed(7)
    for _ in range(passes):
        model(**batch)
    assert torch.equal(actual, torch.get_rng_state())


def test_dropout_is_drawn_anew_in_the_second_pass() -> None:
    model, batch = ARCHITECTURES["bert"].model(dropout=0.5), ARCHITECTURES["bert"].batch()
    adversary = AdversarialEmbedding(model, step_size=0.0)
    adversary(**batch)
    assert adversary.last_losses["adversarial"] != adversary.last_losses["task"]


def test_start_noise_takes_the_gradient_beside_the_embeddings() -> None:
    """With dropout off, noise of the size of the authors' hardly changes the objective; large noise does."""
    architecture = ARCHITECTURES["bert"]
    model, batch = architecture.model(), architecture.batch()
    plain = AdversarialEmbedding(model, STEP_SIZE)(**batch).loss
    small = AdversarialEmbedding(model, STEP_SIZE, start_noise=1e-5)
    torch.testing.assert_close(small(**batch).loss, plain, rtol=1e-3, atol=0)
    large = AdversarialEmbedding(model, STEP_SIZE, start_noise=10.0)
    large(**batch)
    assert large.last_losses["adversarial"] != small.last_losses["adversarial"]
    torch.testing.assert_close(large.last_losses["task"], small.last_losses["task"])


def test_start_noise_has_its_own_generator() -> None:
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model, batch = ARCHITECTURES["bert"].model(), ARCHITECTURES["bert"].batch()
        adversary = AdversarialEmbedding(model, STEP_SIZE, start_noise=10.0)
        losses.append([float(adversary(**batch).loss) for _ in range(2)])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


def test_start_noise_divides_by_num_items_too() -> None:
    architecture = ARCHITECTURES["gpt2_language_model"]
    model, batch = architecture.model(), architecture.batch()
    plain, noisy = AdversarialEmbedding(model), AdversarialEmbedding(model, start_noise=1e-6)
    plain(**batch, num_items_in_batch=50)
    noisy(**batch, num_items_in_batch=50)
    torch.testing.assert_close(noisy.last_losses, plain.last_losses, rtol=1e-3, atol=0)


LLAMA = transformers.LlamaConfig(
    vocab_size=40, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, pad_token_id=1
)


@pytest.mark.parametrize("norm", ["linf", "sign", "l2"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "xlnet"])
def test_a_relative_step_is_a_share_of_the_embedding_of_every_model(name: str, norm: str) -> None:
    architecture = ARCHITECTURES[name]
    model, batch = architecture.model(), architecture.batch()
    adversary = AdversarialEmbedding(model, 0.125, norm=norm, scale="relative")
    seen: list[Tensor] = []
    module = model.get_submodule(adversary.embedding_name)
    module.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    adversary(**batch).loss.backward()
    shares = (seen[1] - seen[0]).norm(dim=-1) / seen[0].norm(dim=-1)
    mask = batch["attention_mask"].T if architecture.tokens_first else batch["attention_mask"]
    moved = shares > 0
    assert moved.any()
    assert not moved[mask == 0].any()
    torch.testing.assert_close(shares[moved], torch.full_like(shares[moved], 0.125), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("make", "share", "cure"),
    [
        (lambda: transformers.LlamaForCausalLM(LLAMA), "1[0-9][0-9]%", "step_size=0.00[12]"),
        (lambda: PlainClassifier(), "[0-9]+%", ""),
    ],
    ids=["llama", "plain"],
)
def test_a_step_that_is_longer_than_a_quarter_of_the_embeddings_is_said_once(make: Any, share: str, cure: str) -> None:
    torch.manual_seed(0)
    model, batch = make().train(), ARCHITECTURES["gpt2_language_model"].batch()
    plain = isinstance(model, PlainClassifier)
    if plain:
        batch["labels"] = torch.tensor([0, 1, 2])
    adversary = AdversarialEmbedding(model, 3.0 if plain else 0.1, loss_fn=F.cross_entropy if plain else None)
    message = rf"step_size=.* by {share} of their length.*{cure}.*step_size=0.03 with scale=.relative."
    with pytest.warns(UserWarning, match=message) as caught:
        losses = [adversary(**batch).loss for _ in range(3)]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert all(loss.isfinite() for loss in losses)


@pytest.mark.parametrize("options", [{}, {"step_size": 0.2, "scale": "relative"}, {"step_size": 0.0}], ids=str)
def test_a_short_step_is_not_spoken_of(options: dict[str, Any]) -> None:
    model, batch = ARCHITECTURES["bert"].model(), ARCHITECTURES["bert"].batch()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*step_size.*")
        AdversarialEmbedding(model, **options)(**batch)


def test_the_step_is_measured_until_there_is_one_and_three_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measurement waits for the device."""
    measured: list[float] = []

    def measure(perturbed: Tensor, embedding: Tensor) -> float:
        measured.append(relative_length(perturbed, embedding))
        return measured[-1]

    monkeypatch.setattr(adversarial, "relative_length", measure)
    model, batch = ARCHITECTURES["bert"].model(), ARCHITECTURES["bert"].batch()
    for step_size, expected in ((0.1, 1), (0.0, 3)):
        adversary = AdversarialEmbedding(model, step_size)
        measured.clear()
        for _ in range(5):
            adversary(**batch)
        assert len(measured) == expected
