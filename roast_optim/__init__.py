"""Robust fine-tuning by swapping the optimizer: RoAST (arXiv 2312.04032) for any PyTorch loop."""

from .adversarial import AdversarialEmbedding
from .losses import symmetric_kl
from .optimizer import RoastAdamW
from .param_groups import selective_param_groups

__all__ = ["AdversarialEmbedding", "RoastAdamW", "selective_param_groups", "symmetric_kl"]
__version__ = "0.1.0"  # the only place; pyproject.toml takes it from here without importing the package
