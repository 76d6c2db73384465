"""runs.jsonl: one line per finished run, appended at once. It is only ever added to."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.scores import PERSPECTIVES

Row = dict[str, Any]

PURPOSES = ("final", "tuning", "smoke")
SCORES = tuple(each.key for each in PERSPECTIVES)  # fractions of 1; null where there is no such set
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
PROTOCOL = 2  # of new runs, see PROTOCOL.md; rows without a protocol are of the first
OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "protocol": int,
    "content": dict,  # digests of what was read: data and pre-trained weights
    "predictions": str,  # file beside runs.jsonl
    "failed": str,  # why there are no scores
}


class RunStore:
    """The runs recorded in a file, and the way to add to them. Several processes may add to one file.

    Raises:
        UserError: the file exists and one of its lines is not a run, or it cannot be written. Lines are left as they
            are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:  # now: what cannot be written should not be noticed after hours of training
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                os.close(os.open(path, os.O_RDWR | os.O_APPEND))
            else:
                tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); give another --output") from None
        self.reread()

    def reread(self) -> None:
        """Learn of the runs that other processes have added."""
        self.rows = read_runs(self.path)
        self.by_identity: dict[str, list[Row]] = {}
        for row in self.rows:
            self.by_identity.setdefault(identity_of(row), []).append(row)

    def find(self, identity: Row) -> Row | None:
        """The recorded run with these values of IDENTITY; a record from before content was recorded fits any."""
        content = identity.get("content")
        alike = self.by_identity.get(identity_of(identity), [])
        return next((row for row in alike if row.get("content", content) == content), None)

    def append(self, row: Row) -> None:
        """Add a run to the file; it has reached the disk on return.

        Raises:
            ValueError: the row lacks a key, has a value of another type, or this run is recorded already.
            UserError: the disk took only a part of it. The part is taken back.
        """
        if problem := problem_of(row):
            raise ValueError(f"this is not a run: {problem}")
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # until it is closed
            self.reread()
            if self.find(row):
                raise ValueError(f"recorded already: {identity_of(row)}")
            write_whole(descriptor, line, self.path)
        finally:
            os.close(descriptor)
        self.rows.append(row)
        self.by_identity.setdefault(identity_of(row), []).append(row)


def write_whole(descriptor: int, line: bytes, path: Path) -> None:
    """Append a line to an open file, or nothing of it.

    Raises:
        UserError: the disk is full, or the file may not grow.
    """
    size = os.fstat(descriptor).st_size
    try:
        written = 0
        while written < len(line):
            written += os.write(descriptor, line[written:])
        os.fsync(descriptor)
    except OSError as error:
        os.ftruncate(descriptor, size)
        raise UserError(f"{path}: the run could not be written ({error.strerror}); nothing was added") from None


def identity_of(row: Row) -> str:
    """Two runs with the same identity and the same content are the same run.

    A model is known by its name alone: it may come from the hub at one time and from a folder at another.
    """
    named = {key: row[key] for key in IDENTITY}
    return canonical({"protocol": row.get("protocol", 1), **named, "model": Path(row["model"]).name})


def succeeded(rows: Iterable[Row]) -> list[Row]:
    """The runs that have scores."""
    return [row for row in rows if "failed" not in row]


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
    needed_keys = {key: KEYS[key] for key in IDENTITY} if "failed" in row else KEYS
    for key, kind in {**needed_keys, **{key: OPTIONAL[key] for key in OPTIONAL if key in row}}.items():
        if key not in row:
            return f"key {key!r} is missing"
        if not isinstance(row[key], kind) or isinstance(row[key], bool):
            return f"{key} is {row[key]!r}"
    if row["purpose"] not in PURPOSES:
        return f"purpose is {row['purpose']!r}"
    for name, scores in row.get("per_set", {}).items():
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
