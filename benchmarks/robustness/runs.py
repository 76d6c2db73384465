"""runs.jsonl: one line per finished run, appended at once. It is only ever added to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .errors import UserError

Row = dict[str, Any]

PURPOSES = ("final", "tuning", "smoke")
SCORES = ("acc_in", "acc_shift", "acc_adv", "ece", "auroc")  # fractions of 1; null where there is no such set
KEYS: dict[str, type | tuple[type, ...]] = {
    "purpose": str,
    "task": str,
    "method": str,
    "model": str,
    "seed": int,
    "options": dict,
    "train_rows": int,
    "epochs": int,
    "acc_in": (float, int),
    **dict.fromkeys(SCORES[1:], (float, int, type(None))),
    "per_set": dict,
    "seconds": (float, int),
    "torch": str,
    "commit": (str, type(None)),
}
IDENTITY = ("purpose", "task", "method", "model", "seed", "options", "train_rows", "epochs")


class RunStore:
    """The runs recorded in a file, and the way to add to them.

    Raises:
        UserError: the file exists and one of its lines is not a run. The file is left as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = read_runs(path)

    def find(self, identity: Row) -> Row | None:
        """The recorded run with these values of IDENTITY."""
        wanted = identity_of(identity)
        return next((row for row in self.rows if identity_of(row) == wanted), None)

    def append(self, row: Row) -> None:
        """Add a run to the file, in a single write that has reached the disk on return.

        Raises:
            ValueError: the row lacks a key, has a value of another type, or this run is recorded already.
        """
        if problem := problem_of(row):
            raise ValueError(f"this is not a run: {problem}")
        if self.find(row):
            raise ValueError(f"recorded already: {identity_of(row)}")
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.rows.append(row)


def identity_of(row: Row) -> str:
    """Two runs with the same identity are the same run."""
    return canonical({key: row[key] for key in IDENTITY})


def read_runs(path: Path) -> list[Row]:
    """All runs of a file; none if it does not exist."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        where = f"{path}:{number}"
        try:
            row = json.loads(line, parse_constant=not_json)
        except ValueError:  # JSONDecodeError and UnicodeDecodeError are both
            raise UserError(f"{where}: not JSON; remove the line, or give another --output") from None
        if problem := problem_of(row):
            raise UserError(f"{where}: not a run of this study ({problem}); remove the line, or give another --output")
        if not line.endswith(b"\n"):
            raise UserError(f"{where}: the line has no end; remove it, or end it with a newline")
        rows.append(row)
    return rows


def problem_of(row: Any) -> str | None:
    """What keeps a value from being a run, or None."""
    if not isinstance(row, dict):
        return f"it is a {type(row).__name__}, not an object"
    for key, kind in KEYS.items():
        if key not in row:
            return f"key {key!r} is missing"
        if not isinstance(row[key], kind) or isinstance(row[key], bool):
            return f"{key} is {row[key]!r}"
    if row["purpose"] not in PURPOSES:
        return f"purpose is {row['purpose']!r}"
    for name, scores in row["per_set"].items():
        found = scores if isinstance(scores, dict) else {}
        measure = "auroc" if found.get("role") == "anomaly" else "accuracy"
        needed: dict[str, type | tuple[type, ...]] = {"role": str, "rows": int, measure: (float, int)}
        for key, kind in needed.items():
            if not isinstance(found.get(key), kind):
                return f"per_set has no {key} of {name!r}"
    return None


def not_json(constant: str) -> None:
    """NaN and Infinity, which Python reads though JSON has no such numbers."""
    raise ValueError(constant)


def canonical(value: Any) -> str:
    """Text that is equal for equal settings, however their numbers are written: 10 is 10.0."""

    def with_floats(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: with_floats(each) for key, each in part.items()}
        if isinstance(part, (list, tuple)):
            return [with_floats(each) for each in part]
        return float(part) if isinstance(part, int) and not isinstance(part, bool) else part

    return json.dumps(with_floats(value), sort_keys=True)


def settings_of(row: Row) -> dict[str, Any]:
    """What a run was made with, its method, model and seed apart."""
    return {**row["options"], "rows": row["train_rows"], "epochs": row["epochs"]}
