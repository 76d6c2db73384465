"""Robust fine-tuning by swapping the optimizer: RoAST (arXiv 2312.04032) for any PyTorch loop.

Example, with a tiny model that learns to tell eight random sentences apart:
    >>> import torch
    >>> from roast_optim import AdversarialEmbedding, RoastAdamW
    >>> _ = torch.manual_seed(0)
    >>> tokens, labels = torch.randint(50, (8, 4)), torch.tensor([0, 1] * 4)
    >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Flatten(), torch.nn.Linear(64, 2))
    >>> optimizer = RoastAdamW([{"params": model.parameters(), "selective": True}], lr=0.01)
    >>> loss_fn = torch.nn.functional.cross_entropy
    >>> adversary = AdversarialEmbedding(model, embedding=model[0], loss_fn=loss_fn)
    >>> for _ in range(20):
    ...     adversary(tokens, labels=labels).loss.backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> model(tokens).argmax(1).tolist()
    [0, 1, 0, 1, 0, 1, 0, 1]
"""

from .adversarial import AdversarialEmbedding
from .losses import symmetric_kl
from .model_output import TaskLoss
from .optimizer import RoastAdamW
from .param_groups import selective_param_groups
from .shared_ranks import SharedRanks

__all__ = [
    "AdversarialEmbedding",
    "RoastAdamW",
    "SharedRanks",
    "TaskLoss",
    "selective_param_groups",
    "symmetric_kl",
]
__version__ = "0.1.0"  # the only place; pyproject.toml takes it from here without importing the package
