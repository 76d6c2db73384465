"""Tables of texts from files: CSV, TSV, JSON Lines, Parquet, and plain lines. Every row knows where it stands."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UserError

DELIMITERS = ",;\t"


class Row(NamedTuple):
    """One row of a file; `where` is "FILE:LINE" of its first line, for messages."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A file's rows, of which there is at least one, and the names of its columns."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]


def read_table(path: Path) -> Table:
    """Read a file by its ending.

    .csv: the delimiter is the comma, semicolon or tab of which the header has most; quotes, line breaks in quotes, CRLF
    and a byte order mark are understood. .tsv: the same with tabs or, if the file is not well formed with quotes,
    without any meaning of quotes. .jsonl, .json: an object per line. .parquet: needs pyarrow. .txt: a text per line,
    as the column "text".

    Raises:
        UserError: the file is missing, empty, of another kind or damaged; the message says where.
    """
    try:
        is_there = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        is_there = False
    if not is_there:
        raise UserError(f"{path}: there is no such file")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: files end in {', '.join(READERS)}; this one does not")
    columns, rows = reader(path)
    if not rows:
        raise UserError(f"{path}:1: there is no row; a set must not be empty")
    for column in columns:
        if columns.count(column) > 1:
            raise UserError(f"{path}:1: the column {column!r} stands in the header more than once")
    return Table(path, tuple(columns), rows)


def read_csv(path: Path) -> tuple[Sequence[str], list[Row]]:
    """A header line and rows, with quotes."""
    text = decoded(path)
    header = re.split(r"[\r\n]", text, maxsplit=1)[0]
    return from_records(path, quoted_records(path, text, max(DELIMITERS, key=header.count)))


def read_tsv(path: Path) -> tuple[Sequence[str], list[Row]]:
    """A header line and rows, with quotes if all is well formed with them, else as they stand.

    A text that merely begins with a quote, and a later one that ends with one, look like a quoted text of several
    lines: what is between them then has a tab, or is in a file of a single column.
    """
    text = decoded(path)
    try:
        columns, rows = from_records(path, quoted_records(path, text, "\t"))
    except UserError:
        return from_records(path, plain_records(path, text))
    broken = [field for row in rows for field in row.values.values() if "\n" in field]
    swallowed = any("\t" in field or len(columns) == 1 for field in broken)
    return from_records(path, plain_records(path, text)) if swallowed else (columns, rows)


def quoted_records(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Where each record begins, and its fields. A quote at the wrong place is an error, not a guess."""
    with any_field_size():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        while True:
            where = f"{path}:{reader.line_num + 1}"
            try:
                yield where, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(f"{where}: not well-formed CSV ({error}); quotes in a text must be doubled") from None


def plain_records(path: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    """Where each line stands, and its fields between tabs."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        yield f"{path}:{number}", line.rstrip("\n").split("\t") if line != "\n" else []


def from_records(path: Path, records: Iterator[tuple[str, list[str]]]) -> tuple[Sequence[str], list[Row]]:
    """Columns from the first record, rows from the others; empty lines are left out."""
    columns: list[str] = []
    rows = []
    for where, fields in records:
        if not fields:
            continue
        if not columns:
            columns = [field.strip() for field in fields]
        elif len(fields) != len(columns):
            raise UserError(f"{where}: {len(fields)} fields, but the header has {len(columns)}: {', '.join(columns)}")
        else:
            rows.append(Row(where, dict(zip(columns, fields, strict=True))))
    return columns, rows


def read_json_lines(path: Path) -> tuple[Sequence[str], list[Row]]:
    """An object per line; a key that a line lacks is empty there."""
    rows = []
    for number, line in enumerate(decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error}); write one object per line") from None
        if not isinstance(values, dict):
            raise UserError(f"{where}: a {type(values).__name__} where an object should be; write one object per line")
        rows.append(Row(where, values))
    return list(dict.fromkeys(key for row in rows for key in row.values)), rows


def read_parquet(path: Path) -> tuple[Sequence[str], list[Row]]:
    """Rows of a Parquet file, told by their number from 1."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{path}: Parquet files need pyarrow: pip install pyarrow") from None
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    return table.column_names, [Row(f"{path}, row {row}", values) for row, values in enumerate(table.to_pylist(), 1)]


def read_lines(path: Path) -> tuple[Sequence[str], list[Row]]:
    """A text per line; empty lines are left out."""
    lines = enumerate(io.StringIO(decoded(path), newline=None), 1)
    return ["text"], [Row(f"{path}:{number}", {"text": line.strip()}) for number, line in lines if line.strip()]


READERS: dict[str, Callable[[Path], tuple[Sequence[str], list[Row]]]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_json_lines,
    ".json": read_json_lines,
    ".parquet": read_parquet,
    ".txt": read_lines,
}


def decoded(path: Path) -> str:
    """The file as text: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises:
        UserError: it is neither, or cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not {encoding[:6].upper()} ({error.reason}); save the file as UTF-8") from None


@contextmanager
def any_field_size() -> Iterator[None]:
    """The csv module refuses texts beyond 131,072 characters, unless it is told otherwise for the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
