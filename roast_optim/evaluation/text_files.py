"""The files of an evaluation: one set per file, each with its role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .attack import ATTACK
from .columns import Columns, FileSet, read_set
from .errors import UserError
from .labels import problem_of_classes
from .sets import Role


def read_sets(files: Mapping[Role, Sequence[Path]], given: Columns) -> tuple[list[FileSet], list[str]]:
    """Read all files.

    Args:
        files: of each role.
        given: the names of columns, where they are not to be guessed.

    Returns:
        The sets, and what should be known of them: that a set of shifted or adversarial texts has a single class.

    Raises:
        UserError: a file cannot be used, as :func:`roast_optim.evaluation.columns.read_set` says; the in-distribution
            or validation set has a single class; or some sets have pairs of texts and others single ones.
    """
    paths = [(role, path) for role, mine in files.items() for path in mine]
    names = dict(zip([path for _, path in paths], short_names([path for _, path in paths]), strict=True))
    if len(names) < len(paths):
        twice = next(path for _, path in paths if [each for _, each in paths].count(path) > 1)
        raise UserError(f"{twice} is given twice; a file is one set, with one role")
    if reserved := [path for path, name in names.items() if name == ATTACK]:
        raise UserError(f"{reserved[0]}: {ATTACK!r} is the name of the texts that the attack makes; rename the file")
    sets, notes = [], []
    for role, path in paths:
        rows = read_set(path, names[path], role, given)
        if problem := problem_of_classes(rows):
            if role in ("in_distribution", "validation"):
                raise UserError(problem)
            notes.append(problem)
        sets.append(rows)
    check_widths(sets)
    return sets, notes


def check_widths(sets: Sequence[FileSet]) -> None:
    """All labelled sets have single texts, or all have pairs.

    Raises:
        UserError: some have the one and some the other.
    """
    first: FileSet | None = None
    for each in sets:
        if each.role == "anomaly":
            continue
        first = first or each
        widths = [len(one.rows[0].texts) for one in (first, each)]
        if widths[0] != widths[1]:
            raise UserError(
                f"{each.rows[0].where}: {widths[1]} text(s) per row, but {first.rows[0].where}: {widths[0]}; "
                "name the columns with --text-columns"
            )


def short_names(paths: Sequence[Path | str]) -> list[str]:
    """Each path's last part without a file's ending or, where another path has the same, the whole path."""
    stems = [Path(path).stem if Path(path).is_file() else Path(path).name or str(path) for path in paths]
    return [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths, strict=True)]
