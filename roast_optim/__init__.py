"""Robust fine-tuning by swapping the optimizer: RoAST (arXiv 2312.04032) for any PyTorch loop."""

import importlib

try:
    importlib.import_module(".kernels", __name__)
except ModuleNotFoundError as error:
    if error.name != "roast_optim.kernels":
        raise
    raise ImportError(
        "roast_optim.kernels is not here: this is the source tree of roast_optim, in which the kernels lie in a folder "
        "of their own. Run 'pip install -e .' in it, or leave the folder to use the installed package",
        name="roast_optim.kernels",
    ) from error

from .adversarial import AdversarialEmbedding
from .losses import symmetric_kl
from .model_output import TaskLoss
from .optimizer import RoastAdamW
from .param_groups import selective_param_groups

__all__ = ["AdversarialEmbedding", "RoastAdamW", "TaskLoss", "selective_param_groups", "symmetric_kl"]
__version__ = "0.1.0"
