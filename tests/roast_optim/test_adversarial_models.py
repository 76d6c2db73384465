"""Models whose inside or output differs from the usual train with the adversary as they do without it."""

from __future__ import annotations

import itertools
import re
import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from roast_optim.adversarial import AdversarialEmbedding
from tests.models import ARCHITECTURES, HIDDEN, VOCABULARY
from tests.oracles.objective import counted_rows, objective, symmetric_divergence

both_gradients = pytest.mark.parametrize("gradient", ["exact", "fast"])

ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 1, "num_labels": 3,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
SEQUENCES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": HIDDEN, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 1, "dropout": 0.0,
    "attention_dropout": 0.0, "activation_dropout": 0.0,
}  # fmt: skip


def build(model_class: Any, config: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = model_class(config)
    return model.train()


def longformer() -> nn.Module:
    config = transformers.LongformerConfig(attention_window=8, **ENCODER)
    return build(transformers.LongformerForSequenceClassification, config)


def longformer_masked() -> nn.Module:
    return build(transformers.LongformerForMaskedLM, transformers.LongformerConfig(attention_window=8, **ENCODER))


def led() -> nn.Module:
    return build(transformers.LEDForConditionalGeneration, transformers.LEDConfig(attention_window=8, **SEQUENCES))


def pegasus_x() -> nn.Module:
    return build(transformers.PegasusXForConditionalGeneration, transformers.PegasusXConfig(**SEQUENCES))


def big_bird() -> nn.Module:
    """Pads 50 tokens to 52 before its block-sparse attention."""
    config = transformers.BigBirdConfig(attention_type="block_sparse", block_size=4, num_random_blocks=1, **ENCODER)
    return build(transformers.BigBirdForSequenceClassification, config)


def moved_rows(model: nn.Module, adversary: AdversarialEmbedding, batch: dict[str, Tensor]) -> Tensor:
    """Which rows of the embedding output the adversary moves."""
    seen: list[Tensor] = []
    module = model.get_submodule(adversary.embedding_name)
    handle = module.register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    output = adversary(**batch)
    (output["loss"] if isinstance(output, dict) else output.loss).backward()
    handle.remove()
    return (seen[1] - seen[0]).abs().amax(-1) > 0


@pytest.mark.parametrize(
    ("make", "labels", "tokens", "padded_to"),
    [
        (longformer, "class", 5, 8),
        (longformer, "class", 8, 8),
        (longformer_masked, "token", 5, 8),
        (led, "token", 5, 8),
        (big_bird, "class", 50, 52),
    ],
)
@both_gradients
def test_a_model_that_pads_inside_is_perturbed_where_its_tokens_are(
    make: Any, labels: str, tokens: int, padded_to: int, gradient: str
) -> None:
    model = make()
    architecture = ARCHITECTURES["bert" if labels == "class" else "modernbert_masked_language_model"]
    batch = architecture.batch(tokens=tokens)
    adversary = AdversarialEmbedding(model, gradient=gradient)
    moved = moved_rows(model, adversary, batch)
    assert moved.shape == (3, padded_to)
    assert not moved[F.pad(batch["attention_mask"], (0, padded_to - tokens)) == 0].any()
    assert moved.any()


@both_gradients
def test_a_model_that_pads_its_embeddings_is_perturbed_everywhere_and_that_is_said(gradient: str) -> None:
    adversary = AdversarialEmbedding(pegasus_x(), gradient=gradient)
    with pytest.warns(UserWarning, match=r"attention_mask of shape \(3, 5\) does not fit.*\(3, 32, 16\)"):
        adversary(**ARCHITECTURES["modernbert_masked_language_model"].batch(tokens=5)).loss.backward()
    assert adversary.last_losses["adversarial"] > adversary.last_losses["task"]


def prompted(architecture: str, kind: str) -> nn.Module:
    peft = pytest.importorskip("peft")
    task = "CAUSAL_LM" if ARCHITECTURES[architecture].labels == "token" else "SEQ_CLS"
    options = {"encoder_hidden_size": HIDDEN} if kind != "PromptTuningConfig" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(peft, kind)(task_type=task, num_virtual_tokens=4, **options)
        model: nn.Module = peft.get_peft_model(ARCHITECTURES[architecture].model(), config)
    return model.train()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(["bert", "roberta", "gpt2_language_model"], ["PromptTuningConfig", "PromptEncoderConfig"]),
        ("gpt2_language_model", "PrefixTuningConfig"),
    ],
)
@both_gradients
def test_virtual_tokens_train_with_the_adversary(name: str, kind: str, gradient: str) -> None:
    model, batch = prompted(name, kind), ARCHITECTURES[name].batch()
    model(**batch).loss.backward()
    expected = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    adversary = AdversarialEmbedding(model, gradient=gradient)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(do|does) not fit.*")
        moved = moved_rows(model, adversary, batch)
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == expected
    tokens = batch["attention_mask"].shape[1]
    assert not moved[:, -tokens:][batch["attention_mask"] == 0].any()
    assert moved[:, -tokens:].any()


@both_gradients
def test_labels_that_a_wrapper_lengthens_leave_out_what_the_wrapper_leaves_out(gradient: str) -> None:
    """The consistency of prompt tuning counts the tokens with a label, and neither prompts nor padding."""
    model, batch = prompted("gpt2_language_model", "PromptTuningConfig"), ARCHITECTURES["gpt2_language_model"].batch()
    batch["labels"] = batch["labels"].masked_fill(torch.arange(6) < 3, -100)
    logits: list[Tensor] = []
    model.base_model.lm_head.register_forward_hook(lambda module, args, output: logits.append(output.detach()))
    adversary = AdversarialEmbedding(model, 0.5, gradient=gradient)
    adversary(**batch)
    counted = counted_rows(batch["labels"], predicts_next=True)
    expected = symmetric_divergence(*(value[:, 4:] for value in logits))[counted].mean()
    torch.testing.assert_close(adversary.last_losses["consistency"], expected.float(), rtol=1e-4, atol=1e-7)


class SoftPrompts(nn.Module):
    """A tagger with class and prompt tokens in front, whose logits are longer than its labels."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = Prompted()
            self.output = nn.Linear(HIDDEN, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits."""
        hidden = torch.tanh(self.embed(input_ids))
        logits = self.output(hidden + hidden.mean(1, keepdim=True))
        loss = F.cross_entropy(logits[:, 2:].flatten(0, 1), labels.flatten(), ignore_index=-100)
        return {"loss": loss, "logits": logits}


class Prompted(nn.Module):
    """Tokens after two prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, HIDDEN)
        self.prompts = nn.Parameter(torch.randn(2, HIDDEN))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings, [batch, 2 + tokens, hidden]."""
        return torch.cat([self.prompts.expand(len(input_ids), -1, -1), self.words(input_ids)], dim=1)


@both_gradients
def test_what_cannot_be_matched_counts_whole_and_is_said_once(gradient: str) -> None:
    model, batch = SoftPrompts(), ARCHITECTURES["modernbert_masked_language_model"].batch()
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] > 0, 1)
    adversary = AdversarialEmbedding(model, embedding=model.embed, gradient=gradient)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert all(moved_rows(model, adversary, batch).all() for _ in range(2))
    messages = sorted(str(warning.message) for warning in caught if "fit" in str(warning.message))
    assert len(messages) == 2
    assert re.search(r"attention_mask of shape \(3, 6\).*\(3, 8, 16\).*embedding=", messages[0])
    assert re.search(r"labels of shape \(3, 6\).*\(3, 8, 3\).*logits_fn=", messages[1])


def test_logits_fn_matches_longer_logits_with_their_labels() -> None:
    model, batch = SoftPrompts(), ARCHITECTURES["modernbert_masked_language_model"].batch()
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] > 0, 1)
    adversary = AdversarialEmbedding(model, logits_fn=lambda output: output["logits"][:, 2:])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*do not fit.*")
        adversary(**batch)


# ------------------------------------------------------------------------------------------------------------- outputs


def answering(model_class: Any, config: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    batch = ARCHITECTURES["bert"].batch()
    del batch["labels"]
    batch["start_positions"], batch["end_positions"] = torch.tensor([1, 1, 0]), torch.tensor([2, 2, 1])
    return build(model_class, config), batch


def distilbert_answering() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=HIDDEN, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64,
        dropout=0.0, attention_dropout=0.0, qa_dropout=0.0,
    )  # fmt: skip
    return answering(transformers.DistilBertForQuestionAnswering, config)


def bert_answering() -> tuple[nn.Module, dict[str, Tensor]]:
    return answering(transformers.BertForQuestionAnswering, transformers.BertConfig(**ENCODER | {"num_labels": 2}))


def gpt2_answering() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=2, n_head=2, n_positions=32, embd_pdrop=0.0, attn_pdrop=0.0,
        resid_pdrop=0.0,
    )  # fmt: skip
    return answering(transformers.GPT2ForQuestionAnswering, config)


def pre_training(model_class: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    batch = ARCHITECTURES["modernbert_masked_language_model"].batch()
    name = "sentence_order_label" if model_class is transformers.AlbertForPreTraining else "next_sentence_label"
    batch[name] = torch.tensor([0, 1, 0])
    if model_class is transformers.AlbertForPreTraining:
        return build(
            model_class,
            transformers.AlbertConfig(embedding_size=8, classifier_dropout_prob=0.0, **ENCODER | {"num_labels": 2}),
        ), batch
    return build(model_class, transformers.BertConfig(**ENCODER)), batch


def contrastive() -> tuple[nn.Module, dict[str, Any]]:
    part = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.CLIPConfig(
        text_config={**part, "vocab_size": VOCABULARY, "eos_token_id": 2, "projection_dim": 8},
        vision_config={**part, "image_size": 8, "patch_size": 4, "projection_dim": 8},
        projection_dim=8,
    )
    batch: dict[str, Any] = ARCHITECTURES["bert"].batch()
    del batch["labels"]
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return build(transformers.CLIPModel, config), batch | {"pixel_values": pixels, "return_loss": True}


HEADS: dict[str, tuple[Any, list[str]]] = {
    "question answering": (bert_answering, ["start_logits", "end_logits"]),
    "question answering, DistilBERT": (distilbert_answering, ["start_logits", "end_logits"]),
    "question answering, GPT-2": (gpt2_answering, ["start_logits", "end_logits"]),
    "pre-training": (
        lambda: pre_training(transformers.BertForPreTraining),
        ["prediction_logits", "seq_relationship_logits"],
    ),
    "pre-training, ALBERT": (
        lambda: pre_training(transformers.AlbertForPreTraining),
        ["prediction_logits", "sop_logits"],
    ),
    "contrastive": (contrastive, ["logits_per_image", "logits_per_text"]),
}


@pytest.mark.parametrize(("make", "names"), HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("return_dict", [True, False])
@both_gradients
def test_all_predictions_of_a_head_are_compared(make: Any, names: list[str], return_dict: bool, gradient: str) -> None:
    """Each counts the predictions that have a label, where there is a label per prediction; their sum is the loss."""
    model, batch = make()
    adversary = AdversarialEmbedding(model, 0.25, gradient=gradient)
    output = adversary(**batch, return_dict=return_dict)
    mask = batch["attention_mask"].bool()

    def distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
        parts = []
        for name, clean, other in zip(names, first, second, strict=True):
            rows = symmetric_divergence(clean, other)
            parts.append(rows[batch["labels"] != -100].mean() if name == "prediction_logits" else rows.mean())
        return torch.stack(parts).sum()

    expected = objective(
        model,
        batch,
        model.get_submodule(adversary.embedding_name),
        loss_and_logits=lambda result: (result.loss, [getattr(result, name) for name in names]),  # type: ignore[arg-type,return-value]
        step_size=0.25,
        perturbed=mask,
        distance=distance,  # type: ignore[arg-type]
    )
    for name in ("task", "adversarial", "consistency"):
        wanted = getattr(expected, name).float()
        torch.testing.assert_close(adversary.last_losses[name], wanted, rtol=1e-4, atol=1e-6)
    (output.loss if return_dict else output[0]).backward()


class WithoutLogits(transformers.LlamaForCausalLM):
    """As fused cross-entropies do, it never makes the logits."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **_: Any) -> Any:
        """The loss."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        loss = self.loss_function(self.lm_head(hidden), labels, vocab_size=VOCABULARY)
        return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss)


class OnlyALoss(nn.Module):
    """A model of ones own that returns nothing else, in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(VOCABULARY, HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor]:
        """The loss."""
        return (F.cross_entropy(self.output(self.embedding(input_ids).mean(1)), labels[:, 0].clamp(0, 2)),)


def without_logits() -> nn.Module:
    return build(
        WithoutLogits,
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        ),
    )


@pytest.mark.parametrize("make", [without_logits, OnlyALoss])
@both_gradients
def test_no_logits_are_needed_where_no_consistency_is_asked_for(make: Any, gradient: str) -> None:
    model, batch = make(), ARCHITECTURES["gpt2_language_model"].batch()
    with pytest.raises(ValueError, match=r"no logits.*logits_fn=.*consistency_weight=0"):
        AdversarialEmbedding(model, gradient=gradient)(**batch)
    adversary = AdversarialEmbedding(model, consistency_weight=0.0, gradient=gradient)
    output = adversary(**batch)
    output[0].backward()
    assert adversary.last_losses["consistency"] == 0
    assert adversary.last_losses["adversarial"] != adversary.last_losses["task"]


def test_without_a_weight_the_consistency_is_measured_where_there_are_logits() -> None:
    model, batch = ARCHITECTURES["bert"].model(), ARCHITECTURES["bert"].batch()
    consistencies = []
    for weight in (0.5, 0.0):
        adversary = AdversarialEmbedding(model, consistency_weight=weight)
        adversary(**batch)
        consistencies.append(adversary.last_losses["consistency"])
    assert torch.equal(*consistencies)


@pytest.mark.parametrize("where", ["exact", "fast"])
def test_a_loss_that_comes_last_is_replaced_there(where: str) -> None:
    """As in many language models of a single file: logits, loss = model(ids, targets)."""

    class LossLast(OnlyALoss):
        def forward(self, input_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            logits = self.output(torch.tanh(self.embedding(input_ids)))
            return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    model, ids = LossLast(), ARCHITECTURES["bert"].batch()["input_ids"]
    adversary = AdversarialEmbedding(model, gradient=where)
    logits, loss = adversary(ids, ids % 3)
    loss.backward()
    assert logits.shape == (3, 6, 3)
    assert loss > adversary.last_losses["task"]


class InTuple(nn.Module):
    """A table that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, HIDDEN)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, None]:
        """Embeddings, and something else."""
        return self.words(input_ids), None


class OfTuple(nn.Module):
    """A classifier of what such a table returns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.output = InTuple(), nn.Linear(HIDDEN, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and logits."""
        logits = self.output(torch.tanh(self.embed(input_ids)[0]).mean(1))
        return F.cross_entropy(logits, labels), logits


def integer_bert() -> nn.Module:
    return build(transformers.IBertForSequenceClassification, transformers.IBertConfig(**ENCODER))


@pytest.mark.parametrize(("make", "name"), [(integer_bert, "ibert.embeddings"), (OfTuple, "embed")])
@both_gradients
def test_an_embedding_that_returns_a_tuple_is_perturbed_in_its_first_element(
    make: Any, name: str, gradient: str
) -> None:
    model, batch = make(), ARCHITECTURES["bert"].batch()
    adversary = AdversarialEmbedding(model, embedding=model.get_submodule(name), gradient=gradient)
    adversary(**batch)[0].backward()
    assert adversary.last_losses["adversarial"] > adversary.last_losses["task"]
