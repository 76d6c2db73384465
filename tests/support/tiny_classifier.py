"""A tiny BERT, and sentences of which one word decides the label; both are made on the spot."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

GOOD = ("great", "lovely", "superb", "moving")
BAD = ("awful", "boring", "tedious", "clumsy")
OTHER = ("film", "story", "actors", "music", "scene", "ending", "plot", "this", "that", "really")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (*SPECIAL, *GOOD, *BAD, *OTHER)


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Sentences of 3 to 9 words with one word that gives the label."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words = [*draw.choices(OTHER, k=draw.randint(2, 8)), draw.choice(GOOD if number % 2 else BAD)]
        draw.shuffle(words)
        rows.append((" ".join(words), number % 2))
    return rows


def save_model(folder: Path, *, labels: int | None = None, dropout: float = 0.1) -> Path:
    """A BERT of two layers and 32 dimensions with a word tokenizer; with `labels`, a trained classifier of so many."""
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    torch.manual_seed(0)
    if labels is not None:
        config.num_labels = labels
    model = BertModel(config) if labels is None else BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_decoder(folder: Path) -> Path:
    """A Llama of two layers and 32 dimensions with the same tokenizer."""
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(WORDS),
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip


def word_tokenizer(words: tuple[str, ...]) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer
