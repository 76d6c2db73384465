"""Tiny, randomly initialised models of many architectures, without dropout unless asked for, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 40
HIDDEN = 16
BATCH = 3
TOKENS = 6
PADDING = 1  # token id


@dataclass(frozen=True)
class Architecture:
    """How to make one model.

    Attributes:
        make: the model, with that dropout probability everywhere.
        embedding: name of the module that is its embedding output.
        labels: "class", one per sample; "token", one per token.
        predicts_next: the prediction at a token is compared with the label of the next.
        tokens_first: the embedding output is [tokens, batch, hidden].
    """

    make: Callable[[float], nn.Module]
    embedding: str
    labels: str = "class"
    predicts_next: bool = False
    tokens_first: bool = False

    def model(self, *, dropout: float = 0.0, seed: int = 0) -> nn.Module:
        """A model in training mode, its weights scaled up so that its predictions are not all alike."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.make(dropout)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim >= 2:
                        parameter.normal_(std=0.3)
        return model.train()

    def batch(self, *, samples: int = BATCH, tokens: int = TOKENS, seed: int = 1) -> dict[str, Tensor]:
        """Sentences of different lengths, padded on the right, with their labels."""
        generator = torch.Generator().manual_seed(seed)
        input_ids = torch.randint(3, VOCABULARY, (samples, tokens), generator=generator)
        lengths = tokens - torch.arange(samples) % 3
        attention_mask = (torch.arange(tokens) < lengths[:, None]).long()
        input_ids = input_ids.masked_fill(attention_mask == 0, PADDING)
        if self.labels == "class":
            # T5 and BART classify at the end-of-sequence token, of which every sample must have as many.
            input_ids[torch.arange(samples), lengths - 1] = 2
            return {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "labels": torch.randint(0, 3, (samples,), generator=generator),
            }
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": input_ids.masked_fill(attention_mask == 0, -100),
        }


def _encoder(config_class: Any, model_class: Any, **options: Any) -> Callable[[float], nn.Module]:
    """The many architectures that share BERT's names of options."""

    def make(dropout: float) -> nn.Module:
        settings: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 2 * HIDDEN,
            "max_position_embeddings": 32,
            "pad_token_id": PADDING,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "cls_token_id": 0,
            "sep_token_id": 2,
            "num_labels": 3,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "classifier_dropout": dropout,
        }
        model: nn.Module = model_class(config_class(**settings | options))
        return model

    return make


def _distilbert(dropout: float) -> nn.Module:
    return transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(
            vocab_size=VOCABULARY, dim=HIDDEN, n_layers=2, n_heads=2, hidden_dim=2 * HIDDEN, max_position_embeddings=32,
            pad_token_id=PADDING, dropout=dropout, attention_dropout=dropout, seq_classif_dropout=dropout, num_labels=3,
        )
    )  # fmt: skip


def _xlnet(dropout: float) -> nn.Module:
    return transformers.XLNetForSequenceClassification(
        transformers.XLNetConfig(
            vocab_size=VOCABULARY, d_model=HIDDEN, n_layer=2, n_head=2, d_inner=2 * HIDDEN, pad_token_id=PADDING,
            dropout=dropout, summary_last_dropout=dropout, num_labels=3,
        )
    )  # fmt: skip


def _modernbert(model_class: Any) -> Callable[[float], nn.Module]:
    def make(dropout: float) -> nn.Module:
        model: nn.Module = model_class(
            transformers.ModernBertConfig(
                vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=2 * HIDDEN, max_position_embeddings=32, pad_token_id=PADDING, bos_token_id=0,
                eos_token_id=2, cls_token_id=0, sep_token_id=2, embedding_dropout=dropout, mlp_dropout=dropout,
                attention_dropout=dropout, classifier_dropout=dropout, num_labels=3,
            )
        )  # fmt: skip
        return model

    return make


def _gpt2(model_class: Any) -> Callable[[float], nn.Module]:
    def make(dropout: float) -> nn.Module:
        model: nn.Module = model_class(
            transformers.GPT2Config(
                vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=2, n_head=2, n_positions=32, pad_token_id=PADDING,
                bos_token_id=0, eos_token_id=2, embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout,
                num_labels=3,
            )
        )  # fmt: skip
        return model

    return make


def _t5(model_class: Any) -> Callable[[float], nn.Module]:
    def make(dropout: float) -> nn.Module:
        model: nn.Module = model_class(
            transformers.T5Config(
                vocab_size=VOCABULARY, d_model=HIDDEN, d_kv=8, d_ff=2 * HIDDEN, num_layers=2, num_heads=2,
                pad_token_id=PADDING, eos_token_id=2, decoder_start_token_id=PADDING, dropout_rate=dropout,
                classifier_dropout=dropout, num_labels=3,
            )
        )  # fmt: skip
        return model

    return make


def _bart(model_class: Any) -> Callable[[float], nn.Module]:
    def make(dropout: float) -> nn.Module:
        model: nn.Module = model_class(
            transformers.BartConfig(
                vocab_size=VOCABULARY, d_model=HIDDEN, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=2 * HIDDEN, decoder_ffn_dim=2 * HIDDEN,
                max_position_embeddings=32, pad_token_id=PADDING, bos_token_id=0, eos_token_id=2,
                decoder_start_token_id=2, forced_eos_token_id=2, dropout=dropout, attention_dropout=dropout,
                activation_dropout=dropout, classifier_dropout=dropout, num_labels=3,
            )
        )  # fmt: skip
        return model

    return make


class PlainClassifier(nn.Module):
    """A module that knows nothing of transformers: embedding, one hidden layer, mean over the tokens."""

    def __init__(self, dropout: float = 0.0, classes: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.hidden = nn.Linear(HIDDEN, HIDDEN)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(HIDDEN, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits, [batch, classes]."""
        hidden = self.dropout(torch.tanh(self.hidden(self.embedding(input_ids))))
        weights = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (hidden * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True)
        logits: Tensor = self.output(mean)
        return logits


ARCHITECTURES = {
    "bert": Architecture(
        _encoder(transformers.BertConfig, transformers.BertForSequenceClassification), "bert.embeddings"
    ),
    "roberta": Architecture(
        _encoder(transformers.RobertaConfig, transformers.RobertaForSequenceClassification), "roberta.embeddings"
    ),
    "distilbert": Architecture(_distilbert, "distilbert.embeddings"),
    "albert": Architecture(
        _encoder(
            transformers.AlbertConfig,
            transformers.AlbertForSequenceClassification,
            embedding_size=8,
            classifier_dropout_prob=0.0,
        ),
        "albert.embeddings",
    ),
    "deberta_v2": Architecture(
        _encoder(
            transformers.DebertaV2Config,
            transformers.DebertaV2ForSequenceClassification,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            position_biased_input=False,
            type_vocab_size=0,
            pooler_hidden_size=HIDDEN,
            pooler_dropout=0.0,
        ),
        "deberta.embeddings",
    ),
    "electra": Architecture(
        _encoder(transformers.ElectraConfig, transformers.ElectraForSequenceClassification, embedding_size=8),
        "electra.embeddings",
    ),
    "xlnet": Architecture(_xlnet, "transformer.word_embedding", tokens_first=True),
    "modernbert": Architecture(_modernbert(transformers.ModernBertForSequenceClassification), "model.embeddings"),
    "gpt2": Architecture(_gpt2(transformers.GPT2ForSequenceClassification), "transformer.drop"),
    "llama": Architecture(
        _encoder(transformers.LlamaConfig, transformers.LlamaForSequenceClassification), "model.embed_tokens"
    ),
    "t5_classification": Architecture(
        _t5(transformers.T5ForSequenceClassification), "transformer.encoder.embed_tokens"
    ),
    "t5_sequence_to_sequence": Architecture(
        _t5(transformers.T5ForConditionalGeneration), "encoder.embed_tokens", labels="token"
    ),
    "bart": Architecture(_bart(transformers.BartForSequenceClassification), "model.encoder.layernorm_embedding"),
    "bart_sequence_to_sequence": Architecture(
        _bart(transformers.BartForConditionalGeneration), "model.encoder.layernorm_embedding", labels="token"
    ),
    "modernbert_masked_language_model": Architecture(
        _modernbert(transformers.ModernBertForMaskedLM), "model.embeddings", labels="token"
    ),
    "gpt2_language_model": Architecture(
        _gpt2(transformers.GPT2LMHeadModel), "transformer.drop", labels="token", predicts_next=True
    ),
}
