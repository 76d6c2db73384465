"""Where data comes from: a folder of TSV files, the Hugging Face hub, or two Python packages (the demo)."""

from __future__ import annotations

from pathlib import Path

from ..data import Suite, Task
from ..errors import UserError
from .demo import load_demo
from .folder import MANIFEST, load_folder
from .hub import load_hub


def load_suite(source: str, task: Task, train_set: str | None = None) -> Suite:
    """Load all sets of a task.

    Args:
        source: "demo", "hub", or a folder with a MANIFEST.tsv.
        train_set: name of the training set, where the source has several; None is the source's first.

    Raises:
        UserError: the source does not exist, or holds something that cannot be used.
    """
    if source == "demo":
        return load_demo(task)
    if source == "hub":
        return load_hub(task)
    folder = Path(source)
    if not (folder / MANIFEST).is_file():
        raise UserError(f"data {source!r}: give 'demo', 'hub', or a folder that holds a {MANIFEST}")
    return load_folder(folder, task, train_set)
