"""Loading a pre-trained model with a new head, and turning texts into training batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from roast_optim.evaluation.classifier import Classifier, check_tokenizer, loading, on_best_device
from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.sets import Texts

from .data import Task
from .packaged_models import MODELS, folder_of


class TrainingBatches:
    """Shuffled, padded batches with labels; the order depends on the seed and the epoch alone.

    Rows of similar length share a batch, because a step costs what its longest row costs. The batches of an epoch then
    come in random order, which transformers' LengthGroupedSampler does not do (it goes from long to short).
    """

    GROUPED = 8  # batches that are sorted together; more would make the batches of every epoch alike

    def __init__(
        self, classifier: Classifier, texts: Sequence[Texts], labels: Iterable[int], batch_size: int, seed: int
    ) -> None:
        self.classifier = classifier
        self.features = [
            {**features, "labels": label} for features, label in zip(classifier.encode(texts), labels, strict=True)
        ]
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return -(-len(self.features) // self.batch_size)

    def epoch(self, number: int) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch, counted from 0."""
        for rows in self.order(number):
            yield self.classifier.collate([self.features[row] for row in rows])

    def order(self, number: int) -> list[list[int]]:
        """The row numbers of each batch of an epoch."""
        generator = torch.Generator().manual_seed(self.seed * 10_007 + number)
        rows = torch.randperm(len(self.features), generator=generator).tolist()
        group = self.batch_size * self.GROUPED
        batches = []
        for start in range(0, len(rows), group):
            alike = sorted(rows[start : start + group], key=lambda row: len(self.features[row]["input_ids"]))
            batches += [alike[first : first + self.batch_size] for first in range(0, len(alike), self.batch_size)]
        return [batches[position] for position in torch.randperm(len(batches), generator=generator).tolist()]


def load_classifier(name: str, task: Task, max_length: int, seed: int) -> Classifier:
    """Load a pre-trained model with a new classification head.

    Args:
        name: one that :mod:`.packaged_models` knows, a folder, or a name on the Hugging Face hub.
        seed: of the head's initial weights.

    Raises:
        UserError: there is no such model, or its head was trained for another number of labels.
    """
    path = str(locate(name))
    with loading(name):
        config = AutoConfig.from_pretrained(path)
        check_labels(name, config, task)
        config.num_labels = len(task.labels)
        tokenizer = AutoTokenizer.from_pretrained(path)
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(path, config=config)
    check_tokenizer(name, tokenizer)
    return on_best_device(model, tokenizer, max_length)


def weights_digest(name: str, task: Task) -> str:
    """Of the pre-trained weights, without the new head: 12 hexadecimal digits that change with any of them."""
    found = hashlib.sha256()
    for key, values in load_classifier(name, task, 1, 0).model.base_model.state_dict().items():
        found.update(key.encode())
        found.update(values.cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()[:12]


def locate(name: str) -> str | Path:
    """The folder of a model that comes as a Python package, or the name itself."""
    return folder_of(name) if name in MODELS else name


def check_labels(name: str, config: Any, task: Task) -> None:
    """A model that was already trained as a classifier must have the task's number of labels."""
    trained = any("ForSequenceClassification" in each for each in config.architectures or ())
    if trained and config.num_labels != len(task.labels):
        raise UserError(
            f"model {name!r} classifies into {config.num_labels} labels, but task {task.name!r} has "
            f"{len(task.labels)}: {task.describe_labels()}"
        )
