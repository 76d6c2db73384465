"""A transformers model that classifies texts, with its tokenizer: loading it, and predicting in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from .errors import UserError
from .sets import Texts

PREDICTION_BATCH = 32  # rows; they are sorted by length, so hardly any of it is padding
MOST_TOKENS = 512  # where nothing else is asked for; a model that takes less gets less

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

    def count_longer(self, texts: Sequence[Texts]) -> int:
        """How many of the texts have more tokens than a text may have."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(*columns, truncation=False, verbose=False)
        return sum(len(tokens) > self.max_length for tokens in encoded["input_ids"])

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


def load_config(name: str) -> Any:
    """The configuration of a model, which knows its labels.

    Raises:
        UserError: there is no such model.
    """
    with loading(name):
        return AutoConfig.from_pretrained(name)


def load_classifier(name: str, max_length: int | None = None) -> Classifier:
    """Load a model that was fine-tuned as a classifier, and its tokenizer.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        max_length: the most tokens of a text; None: as many as the model takes, at most 512.

    Raises:
        UserError: there is no such model, or it has no trained head that tells two or more labels apart.
    """
    with loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, found = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True)
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])[0]
        raise UserError(f"model {name!r} has no trained classification head ({missing} is missing); fine-tune it first")
    check_exclusive_labels(name, model.config)
    check_tokenizer(name, tokenizer)
    return on_best_device(model, tokenizer, max_length or default_max_length(model, tokenizer))


def check_exclusive_labels(name: str, config: Any) -> None:
    """Scores are about probabilities of two or more labels that exclude each other.

    Raises:
        UserError: the model's outputs are something else.
    """
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        kind = config.problem_type or f"{config.num_labels} output"
        raise UserError(
            f"model {name!r} does not choose one of several labels ({kind}), which is what is measured here"
        )


def check_tokenizer(name: str, tokenizer: Any) -> None:
    """A folder with a model but no tokenizer gives one that knows no word, and no error.

    Raises:
        UserError: the tokenizer has no other tokens than special ones.
    """
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(
            f"model {name!r} comes without its tokenizer; tokenizer.save_pretrained({name!r}) puts it there"
        )


def default_max_length(model: PreTrainedModel, tokenizer: Any) -> int:
    """The most tokens that model and tokenizer take, at most 512."""
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = (
        MOST_TOKENS,
        tokenizer.model_max_length,
        positions if isinstance(positions, int) and positions > 0 else None,
    )
    return int(min(limit for limit in limits if limit is not None))


def on_best_device(model: PreTrainedModel, tokenizer: Any, max_length: int) -> Classifier:
    """The classifier in float32, on a GPU if there is one, and able to pad."""
    if tokenizer.pad_token is None:  # GPT-2 and Llama have none
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Classifier(model.to(device).float(), tokenizer, max_length)  # type: ignore[arg-type]  # of transformers


def label_names_of(config: Any) -> tuple[str, ...]:
    """The names of a model's labels, in the order of their numbers."""
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))


@contextmanager
def loading(name: str) -> Iterator[None]:
    """What goes wrong while a model is loaded becomes a UserError that names it; transformers keeps quiet."""
    try:
        with quiet_transformers():
            yield
    except UserError:
        raise
    except Exception as error:  # of the file formats' own types: pickles, safetensors, JSON, a tokenizer's
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"model {name!r} cannot be loaded: {first_line}") from error


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
