"""Tiny data folders and models for the tests of the study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.robustness.data import TASKS, Suite
from benchmarks.robustness.models import load_classifier
from benchmarks.robustness.sources.folder import MANIFEST_COLUMNS, load_folders
from roast_optim.evaluation.classifier import Classifier
from tests.support.tiny_classifier import save_model, sentences


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
def folder_of_every_role(write_folder: Callable[..., Path]) -> Callable[[str, Callable[[int, int], str], int], Path]:
    """A folder with every role: of a task, with rows that a function makes from their number and a seed."""

    def write(task: str, tsv: Callable[[int, int], str], train_rows: int) -> Path:
        return write_folder(
            {
                "train.tsv": (task, "train", tsv(train_rows, 1), ""),
                "dev.tsv": (task, "validation", tsv(20, 2), ""),
                "test.tsv": (task, "validation", tsv(24, 3), "in-distribution test"),
                "elsewhere.tsv": (task, "shift", tsv(22, 4), ""),
                "tricky.tsv": (task, "adversarial", tsv(21, 5), ""),
                "strange.tsv": ("both", "anomaly", anomaly_tsv(15), ""),
            }
        )

    return write


@pytest.fixture
def sentiment_folder(folder_of_every_role: Callable[..., Path]) -> Path:
    """Sentiment with every role."""
    return folder_of_every_role("sentiment", sentiment_tsv, 64)


@pytest.fixture
def suite(sentiment_folder: Path) -> Suite:
    return load_folders([sentiment_folder], TASKS["sentiment"])
