"""A tiny BERT and tiny data, made on the spot: words of the vocabulary decide the label."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from benchmarks.robustness.data import TASKS, Suite
from benchmarks.robustness.models import Classifier, load_classifier
from benchmarks.robustness.sources.folder import MANIFEST_COLUMNS, load_folders

GOOD = ("great", "lovely", "superb", "moving")
BAD = ("awful", "boring", "tedious", "clumsy")
OTHER = ("film", "story", "actors", "music", "scene", "ending", "plot", "this", "that", "really")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


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
    words = (*SPECIAL, *GOOD, *BAD, *OTHER)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(words),
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    torch.manual_seed(0)
    if labels is not None:
        config.num_labels = labels
    model = BertModel(config) if labels is None else BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def word_tokenizer(words: tuple[str, ...]) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Makes a model that was already trained to tell so many labels apart."""
    return lambda labels: save_model(tmp_path_factory.mktemp("trained"), labels=labels)


@pytest.fixture
def classifier(model_folder: Path) -> Classifier:
    return load_classifier(str(model_folder), TASKS["sentiment"], max_length=32, seed=0)


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a data folder: file name -> (task, role, header and rows as text, notes)."""

    def write(files: dict[str, tuple[str, str, str, str]], rows: dict[str, str] | None = None) -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        manifest = ["\t".join(MANIFEST_COLUMNS)]
        for name, (task, role, text, notes) in files.items():
            (folder / name).write_bytes(text.encode())
            count = (rows or {}).get(name, str(max(0, text.count("\n") - 1)))
            manifest.append(f"{name}\t{task}\t{role}\t{count}\tours\t{notes}")
        (folder / "MANIFEST.tsv").write_text("\n".join(manifest) + "\n")
        return folder

    return write


def sentiment_tsv(count: int, seed: int) -> str:
    return "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in sentences(count, seed))


def anomaly_tsv(count: int) -> str:
    return "text\n" + "".join(f"unheard words number {number}\n" for number in range(count))


@pytest.fixture
def sentiment_folder(write_folder: Callable[..., Path]) -> Path:
    """A folder with every role."""
    return write_folder(
        {
            "train.tsv": ("sentiment", "train", sentiment_tsv(64, 1), ""),
            "dev.tsv": ("sentiment", "validation", sentiment_tsv(20, 2), ""),
            "test.tsv": ("sentiment", "validation", sentiment_tsv(24, 3), "in-distribution test"),
            "elsewhere.tsv": ("sentiment", "shift", sentiment_tsv(22, 4), ""),
            "tricky.tsv": ("sentiment", "adversarial", sentiment_tsv(21, 5), ""),
            "strange.tsv": ("both", "anomaly", anomaly_tsv(15), ""),
        }
    )


@pytest.fixture
def suite(sentiment_folder: Path) -> Suite:
    return load_folders([sentiment_folder], TASKS["sentiment"])
