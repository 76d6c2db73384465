"""What AdversarialEmbedding takes and returns, what it refuses, and what it leaves behind when something fails."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from roast_optim.adversarial import AdversarialEmbedding
from tests.models import ARCHITECTURES, HIDDEN, VOCABULARY, PlainClassifier
from tests.oracles.objective import counted_rows, objective, symmetric_divergence

BERT = ARCHITECTURES["bert"]

both_gradients = pytest.mark.parametrize("gradient", ["exact", "fast"])


class Shaped(nn.Module):
    """A plain classifier whose output is put into another shape."""

    def __init__(self, shape: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.classifier = PlainClassifier()
        self.shape = shape

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        """What ``shape`` makes of loss (None without labels) and logits."""
        logits = self.classifier(input_ids, attention_mask)
        return self.shape(None if labels is None else F.cross_entropy(logits, labels), logits)


def expected_loss() -> Tensor:
    model, batch = Shaped(lambda loss, logits: (loss, logits)), BERT.batch()
    return (
        objective(
            model,
            batch,
            model.classifier.embedding,
            loss_and_logits=lambda output: output,
            perturbed=batch["attention_mask"].bool(),
        )
        .total(0.01)
        .float()
    )


@both_gradients
def test_an_output_of_transformers_has_its_loss_replaced(gradient: str) -> None:
    model, batch = BERT.model(), BERT.batch()
    clean = model(**batch)
    output = AdversarialEmbedding(model, gradient=gradient)(**batch)
    assert type(output) is type(clean)
    assert torch.equal(output.logits, clean.logits)
    assert output.loss is output["loss"] is output[0]
    assert output.loss > clean.loss


@both_gradients
def test_a_tuple_of_transformers_has_its_loss_replaced(gradient: str) -> None:
    model, batch = BERT.model(), BERT.batch()
    expected = AdversarialEmbedding(model, gradient=gradient)(**batch)
    output = AdversarialEmbedding(model, gradient=gradient)(**batch, return_dict=False)
    assert type(output) is tuple
    assert len(output) == 2
    torch.testing.assert_close(output[0], expected.loss)
    assert torch.equal(output[1], expected.logits)


@pytest.mark.parametrize(
    ("shape", "loss_of"),
    [
        (lambda loss, logits: {"loss": loss, "logits": logits}, lambda output: output["loss"]),
        (lambda loss, logits: SimpleNamespace(loss=loss, logits=logits), lambda output: output.loss),
        (lambda loss, logits: (loss, logits, "more"), lambda output: output[0]),
    ],
    ids=["dictionary", "object", "tuple"],
)
@both_gradients
def test_outputs_that_hold_a_loss(shape: Any, loss_of: Any, gradient: str) -> None:
    output = AdversarialEmbedding(Shaped(shape), gradient=gradient)(**BERT.batch())
    torch.testing.assert_close(loss_of(output), expected_loss())
    if isinstance(output, tuple):
        assert output[2] == "more"


@pytest.mark.parametrize(
    ("shape", "logits_of"),
    [
        (lambda loss, logits: logits, lambda output: output),
        (lambda loss, logits: (logits, "more"), lambda output: output[0]),
        (lambda loss, logits: {"logits": logits}, lambda output: output["logits"]),
        (lambda loss, logits: SimpleNamespace(logits=logits), lambda output: output.logits),
    ],
    ids=["tensor", "tuple", "dictionary", "object"],
)
@both_gradients
def test_loss_fn_computes_the_loss_of_any_output(shape: Any, logits_of: Any, gradient: str) -> None:
    model = Shaped(shape)
    adversary = AdversarialEmbedding(
        model, gradient=gradient, loss_fn=lambda output, labels: F.cross_entropy(logits_of(output), labels)
    )
    output = adversary(**BERT.batch())
    loss = output["loss"] if isinstance(output, dict) else output[0] if isinstance(output, tuple) else output.loss
    torch.testing.assert_close(loss, expected_loss())
    loss.backward()
    assert model.classifier.embedding.weight.grad is not None


def test_a_plain_tensor_becomes_a_loss_and_logits() -> None:
    model, batch = PlainClassifier(), BERT.batch()
    adversary = AdversarialEmbedding(model, loss_fn=F.cross_entropy)
    output = adversary(batch["input_ids"], labels=batch["labels"])
    assert output == (output.loss, output.logits)
    assert torch.equal(output.logits, model(batch["input_ids"]))


def test_with_loss_fn_evaluation_passes_no_labels_to_the_model() -> None:
    model, batch = PlainClassifier().eval(), BERT.batch()
    adversary = AdversarialEmbedding(model, loss_fn=F.cross_entropy)
    with torch.no_grad():
        assert torch.equal(adversary(**batch), model(batch["input_ids"], batch["attention_mask"]))


def test_labels_per_token_with_loss_fn_may_be_flat() -> None:
    """Those that are -100 are left out of the consistency, whatever the shape the loss wants them in."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
            self.output = nn.Linear(HIDDEN, 3)

        def forward(self, input_ids: Tensor) -> Tensor:
            logits: Tensor = self.output(torch.tanh(self.embedding(input_ids)))
            return logits

    model, ids = Tagger(), BERT.batch()["input_ids"]
    labels = (ids % 3).masked_fill(ids % 2 == 0, -100)
    losses = []
    for shaped in (labels, labels.flatten()):
        adversary = AdversarialEmbedding(
            model, loss_fn=lambda output, labels: F.cross_entropy(output.flatten(0, 1), labels.flatten())
        )
        adversary(ids, labels=shaped)
        losses.append(adversary.last_losses["consistency"])
    assert losses[0] == losses[1] > 0
    adversary(ids, labels=labels.masked_fill(labels != -100, 0).clamp(min=0))  # every token has a label
    assert adversary.last_losses["consistency"] != losses[0]


@pytest.mark.parametrize("predicts_next", [False, True])
def test_labels_of_loss_fn_belong_to_the_token_that_they_lie_at(predicts_next: bool) -> None:
    """A language model's own loss is of the next token's label; a function of the caller's must say so itself."""
    model, batch = ARCHITECTURES["gpt2_language_model"].model(), ARCHITECTURES["gpt2_language_model"].batch()
    batch["labels"] = batch["labels"].masked_fill(torch.arange(6) < 3, -100)

    def task_loss(output: Any, labels: Tensor) -> Tensor:
        logits = output.logits[:, :-1] if predicts_next else output.logits
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten() if predicts_next else labels.flatten())

    adversary = AdversarialEmbedding(model, loss_fn=None if predicts_next else task_loss)
    adversary(**batch)
    expected = objective(
        model,
        {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]},
        model.transformer.drop,
        loss_and_logits=lambda output: (task_loss(output, batch["labels"]), output.logits),
        perturbed=batch["attention_mask"].bool(),
        distance=lambda first, second: symmetric_divergence(first, second)[
            counted_rows(batch["labels"], predicts_next=predicts_next)
        ].mean(),
    )
    torch.testing.assert_close(adversary.last_losses["consistency"], expected.consistency.float())


def test_a_sample_without_a_finite_gradient_is_not_perturbed_and_is_counted() -> None:
    model, batch = PlainClassifier(), BERT.batch()
    seen: list[Tensor] = []

    def loss_fn(output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output, labels) + (0 * output[1]).sum().sqrt()  # the root's slope at 0 is infinite

    adversary = AdversarialEmbedding(model, loss_fn=loss_fn)
    model.embedding.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    adversary(**batch)
    moved = (seen[1] - seen[0]).abs().amax(-1)
    assert adversary.nonfinite_samples == 1
    assert torch.equal(moved > 0, batch["attention_mask"].bool() & torch.tensor([[True], [False], [True]]))
    adversary(**batch)
    assert adversary.nonfinite_samples == 2


def test_no_sample_with_a_finite_gradient_is_counted() -> None:
    adversary = AdversarialEmbedding(BERT.model())
    adversary(**BERT.batch())
    assert adversary.nonfinite_samples == 0


def test_a_sample_of_xlnet_is_counted_once_though_tokens_come_first() -> None:
    model, batch = ARCHITECTURES["xlnet"].model(), ARCHITECTURES["xlnet"].batch(samples=2, tokens=6)
    adversary = AdversarialEmbedding(
        model, loss_fn=lambda output, labels: output.logits.sum() + (0 * output.logits[1]).sum().sqrt()
    )
    adversary(**batch)
    assert adversary.nonfinite_samples == 1


def test_multiple_choice_flattens_its_mask() -> None:
    model = transformers.BertForMultipleChoice(
        transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        )
    ).train()  # fmt: skip
    batch = BERT.batch(samples=4)
    choices = {name: batch[name].view(2, 2, -1) for name in ("input_ids", "attention_mask")}
    assert AdversarialEmbedding(model)(**choices, labels=torch.tensor([0, 1])).loss.isfinite()


def test_a_mask_that_does_not_fit_is_left_aside_and_that_is_said_once() -> None:
    model, batch = PlainClassifier(), BERT.batch()
    model.forward = lambda input_ids, attention_mask: PlainClassifier.forward(model, input_ids)  # type: ignore[method-assign]
    adversary = AdversarialEmbedding(model, loss_fn=F.cross_entropy)
    mask = batch["attention_mask"][1:]
    with pytest.warns(UserWarning, match=r"attention_mask of shape \(2, 6\).*'embedding', \(3, 6, 16\).*embedding="):
        adversary(batch["input_ids"], attention_mask=mask, labels=batch["labels"]).loss.backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adversary(batch["input_ids"], attention_mask=mask, labels=batch["labels"])


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("step_size", -0.1, "from 0 up"),
        ("step_size", float("nan"), "from 0 up"),
        ("step_size", float("inf"), "from 0 up"),
        ("consistency_weight", -1.0, "from 0 up"),
        ("adversarial_weight", -1.0, "from 0 up"),
        ("clean_weight", -1.0, "from 0 up"),
        ("start_noise", -1e-5, "from 0 up"),
        ("norm", "linfinity", "'linf', 'sign', 'l2'"),
        ("gradient", "slow", "'exact', 'fast'"),
        ("scale", "percent", "'absolute', 'relative'"),
        ("embedding", "words", 'None, "word" or a module'),
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_refused(name: str, value: Any, cure: str) -> None:
    with pytest.raises(ValueError, match=f"{name}={re.escape(repr(value))}.*{re.escape(cure)}"):
        AdversarialEmbedding(BERT.model(), **{name: value})


def test_start_noise_and_fast_gradients_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r'start_noise=1e-05.*gradient="exact"'):
        AdversarialEmbedding(BERT.model(), start_noise=1e-5, gradient="fast")


@pytest.mark.parametrize(
    ("argument", "value"), [("model", "bert"), ("loss_fn", "cross_entropy"), ("logits_fn", "logits")]
)
def test_an_argument_of_the_wrong_type_is_refused(argument: str, value: Any) -> None:
    arguments = {"model": PlainClassifier(), argument: value}
    with pytest.raises(TypeError, match=f"{argument}='{value}'"):
        AdversarialEmbedding(**arguments)


def without(batch: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if key != name}


FAILURES: dict[str, tuple[Any, dict[str, Any], Any, type[Exception], str]] = {
    "no labels": (BERT.model, {}, lambda: without(BERT.batch(), "labels"), ValueError, r"labels=None.*pass labels="),
    "no labels, tuple": (
        BERT.model,
        {},
        lambda: {**without(BERT.batch(), "labels"), "return_dict": False},
        ValueError,
        r"labels=None.*\(3, 3\).*pass labels=",
    ),
    "no labels for loss_fn": (
        PlainClassifier,
        {"loss_fn": F.cross_entropy},
        lambda: without(BERT.batch(), "labels"),
        ValueError,
        r"labels=None.*loss_fn",
    ),
    "a loss of None": (
        lambda: Shaped(lambda loss, logits: {"loss": None, "logits": logits}),
        {},
        BERT.batch,
        ValueError,
        r"loss.*None.*loss_fn=",
    ),
    "a loss per sample": (
        PlainClassifier,
        {"loss_fn": lambda output, labels: F.cross_entropy(output, labels, reduction="none")},
        BERT.batch,
        ValueError,
        r"loss.*shape \(3,\), not a scalar",
    ),
    "a plain tensor without loss_fn": (
        lambda: Shaped(lambda loss, logits: logits),
        {},
        BERT.batch,
        ValueError,
        r"loss_fn=None.*plain tensor.*pass loss_fn=",
    ),
    "no logits": (
        lambda: Shaped(lambda loss, logits: {"loss": loss}),
        {},
        BERT.batch,
        ValueError,
        r"no logits.*\.logits",
    ),
    "an error of the model": (BERT.model, {}, dict, ValueError, r"input_ids"),
    "a loss that depends on no embedding": (
        PlainClassifier,
        {"loss_fn": lambda output, labels: torch.ones((), requires_grad=True)},
        BERT.batch,
        RuntimeError,
        r"does not depend on the embedding 'embedding'",
    ),
}


@pytest.mark.parametrize(("make", "options", "batch", "error", "message"), FAILURES.values(), ids=FAILURES.keys())
@both_gradients
def test_a_call_that_fails_says_why_and_leaves_nothing_behind(
    make: Any, options: dict[str, Any], batch: Any, error: type[Exception], message: str, gradient: str
) -> None:
    model = make()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    adversary = AdversarialEmbedding(model, gradient=gradient, **options)
    with pytest.raises(error, match=message):
        adversary(**batch())
    assert not any(module._forward_hooks for module in model.modules())
    assert modes == [module.training for module in model.modules()]


def test_the_next_call_after_a_failure_works() -> None:
    model = BERT.model()
    adversary = AdversarialEmbedding(model)
    expected = adversary(**BERT.batch()).loss
    with pytest.raises(ValueError, match="labels=None"):
        adversary(**without(BERT.batch(), "labels"))
    assert torch.equal(adversary(**BERT.batch()).loss, expected)


class Recurring(PlainClassifier):
    """Looks its embedding up as often as it is told to."""

    lookups = 2

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits, [batch, classes]."""
        embeddings = sum(
            (self.embedding(input_ids) for _ in range(self.lookups)), torch.zeros(*input_ids.shape, HIDDEN)
        )
        logits: Tensor = self.output(embeddings.mean(1))
        return logits


@pytest.mark.parametrize(("lookups", "message"), [(0, "did not run"), (2, "ran more than once")])
def test_an_embedding_that_does_not_run_exactly_once_is_refused(lookups: int, message: str) -> None:
    model = Recurring()
    model.lookups = lookups
    with pytest.raises(RuntimeError, match=f"'embedding' {message}.*pass embedding="):
        AdversarialEmbedding(model, loss_fn=F.cross_entropy)(**BERT.batch())


def test_an_embedding_that_returns_no_single_tensor_is_refused() -> None:
    model = BERT.model()
    adversary = AdversarialEmbedding(model, embedding=model.bert)
    with pytest.raises(TypeError, match=r"'bert' returned .*Output.*\[batch, tokens, hidden\]"):
        adversary(**BERT.batch())


@pytest.mark.parametrize(
    ("option", "nonsense"),
    [("norm", "bogus"), ("scale", "relativ"), ("direction", "nois"), ("gradient", "fsat"), ("share", 0), ("share", 1.5),
     ("ascents", 0), ("step_size", -1.0), ("step_size", float("nan")), ("ramp", (5, 1)), ("consistency_weight", -1)],
)  # fmt: skip
def test_an_option_that_was_set_to_nonsense_later_is_refused(option: str, nonsense: object) -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 2)).train()
    adversary = AdversarialEmbedding(model, loss_fn=nn.functional.cross_entropy)
    ids, labels = torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 1])
    adversary(ids, labels=labels)
    setattr(adversary, option, nonsense)
    with pytest.raises(ValueError, match=rf"^{option}="):
        adversary(ids, labels=labels)


def test_an_option_that_was_set_to_another_value_later_counts() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 2)).train()
    adversary = AdversarialEmbedding(model, step_size=0.1, loss_fn=nn.functional.cross_entropy)
    ids, labels = torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 1])
    adversary.step_size = 0.0
    adversary(ids, labels=labels)
    assert adversary.last_losses["adversarial"] == adversary.last_losses["task"]
