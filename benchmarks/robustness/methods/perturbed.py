"""A forward pass with something added to the word embeddings, for the methods that perturb them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


def word_embeddings(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """The word embeddings [batch, tokens, hidden] of a batch."""
    embeddings: Tensor = model.get_input_embeddings()(batch["input_ids"])
    return embeddings


def word_table(model: PreTrainedModel) -> Tensor:
    """The word-embedding table [vocabulary, hidden], without gradient."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    return table.detach()


def forward_with(model: PreTrainedModel, batch: dict[str, Tensor], embeddings: Tensor) -> Any:
    """The model's output with these word embeddings in place of the batch's."""
    rest = {name: values for name, values in batch.items() if name != "input_ids"}
    return model(**rest, inputs_embeds=embeddings)
