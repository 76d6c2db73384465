"""Where data comes from: folders of TSV files, the Hugging Face hub, or two Python packages (the demo)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from roast_optim.evaluation.errors import UserError

from ..data import Suite, Task
from .demo import load_demo
from .folder import MANIFEST, is_file, load_folders
from .hub import load_hub


def load_suite(sources: Sequence[str], task: Task, train_set: str | None = None) -> Suite:
    """Load all sets of a task.

    Args:
        sources: "demo", "hub", or one or several folders with a MANIFEST.tsv.
        train_set: name of the training set, where the source has several; None is the source's first.

    Raises:
        UserError: a source does not exist, or holds something that cannot be used.
    """
    if tuple(sources) == ("demo",):
        return load_demo(task)
    if tuple(sources) == ("hub",):
        return load_hub(task)
    for each in sources:
        if not is_file(Path(each) / MANIFEST):
            raise UserError(f"data {each!r}: give 'demo' or 'hub' alone, or folders that hold a {MANIFEST} each")
    return load_folders([Path(each) for each in sources], task, train_set)
