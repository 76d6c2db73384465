"""Two passes through a model: one that tells the gradient of its embeddings, one with others in their place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from roast_optim.embedding_block import find_embedding_output


class PerturbedBlock:
    """A hook on the output of the embedding block, which is what :class:`roast_optim.AdversarialEmbedding` perturbs.

    It is bare where that class is safe: for trying variants of the objective before they become options there.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.embeddings: Tensor | None = None
        self.leaf: Tensor | None = None
        self.replacement: Tensor | None = None
        self.handle = find_embedding_output(model, None).module.register_forward_hook(self.answer)

    def remove(self) -> None:
        """Take the hook off."""
        self.handle.remove()

    def answer(self, module: torch.nn.Module, args: Any, output: Tensor) -> Tensor:
        """What the block returns: the replacement or, in a clean pass, its output plus a leaf of zeros."""
        if self.replacement is not None:
            return self.replacement
        if not torch.is_grad_enabled():
            return output
        self.embeddings = output.detach()
        self.leaf = torch.zeros_like(self.embeddings, requires_grad=True)
        return output + self.leaf

    def clean(self, batch: dict[str, Tensor]) -> tuple[Any, Tensor, Tensor]:
        """The model's output, its embeddings [batch, tokens, hidden], and the leaf whose gradient is theirs."""
        output = self.model(**batch)
        embeddings, leaf = self.embeddings, self.leaf
        assert embeddings is not None
        assert leaf is not None
        self.embeddings = self.leaf = None  # the graph hangs on them
        return output, embeddings, leaf

    def replaced(self, batch: dict[str, Tensor], embeddings: Tensor) -> Any:
        """The model's output with these embeddings."""
        self.replacement = embeddings
        try:
            return self.model(**batch)
        finally:
            self.replacement = None


def relative_step(embeddings: Tensor, gradient: Tensor, mask: Tensor, share: float | Tensor) -> Tensor:
    """Share * |e| * d / |d| for every token; zero for padding and where the gradient is zero.

    Args:
        embeddings, gradient: [batch, tokens, hidden].
        mask: the attention mask [batch, tokens].
        share: of each token's own embedding length.
    """
    direction = torch.nn.functional.normalize(gradient.float(), dim=-1, eps=torch.finfo(torch.float32).tiny)
    lengths = embeddings.float().norm(dim=-1, keepdim=True)
    step: Tensor = share * lengths * direction * mask[..., None]
    return step.to(embeddings.dtype)
