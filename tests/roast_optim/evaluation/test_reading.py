"""Files are read as the programs that write them mean them, and what cannot be read is named with file and line."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.reading import read_table

ROWS = [{"text": 'She said "no",\r\nand left', "label": "bad"}, {"text": "fine; really\tso", "label": "gut ü"}]


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_csv(rows: list[dict[str, str]], **dialect: Any) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), **dialect)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_with_quotes_line_breaks_and_any_ending(tmp_path: Path, end: str, encoding: str, delimiter: str) -> None:
    content = as_csv(ROWS, lineterminator=end, delimiter=delimiter)
    table = read_table(written(tmp_path, "data.csv", content.encode(encoding)))
    assert table.columns == ("text", "label")
    assert [row.values for row in table.rows] == ROWS


def test_rows_know_their_first_line(tmp_path: Path) -> None:
    path = written(tmp_path, "data.csv", 'text,label\n"one\ntwo\n",1\n\nthree,0\n')
    assert [row.where for row in read_table(path).rows] == [f"{path}:2", f"{path}:6"]


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1))
def test_whatever_the_csv_module_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    # Surrogates are no text. Quotes everywhere: without, some versions of Python write a lone CR as it stands.
    rows = [(first.encode(errors="ignore").decode(), second.encode(errors="ignore").decode()) for first, second in rows]
    content = as_csv([{"a": first, "b": second} for first, second in rows], lineterminator="\n", quoting=csv.QUOTE_ALL)
    table = read_table(written(tmp_path_factory.mktemp("csv"), "data.csv", content))
    assert [tuple(row.values.values()) for row in table.rows] == rows


def test_tsv_is_read_with_quotes_where_it_is_well_formed_with_them(tmp_path: Path) -> None:
    path = written(tmp_path, "data.tsv", as_csv(ROWS, delimiter="\t", lineterminator="\r\n"))
    assert [row.values for row in read_table(path).rows] == ROWS


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text\tlabel\n"Great\t1\nfilm"\t0\n', ['"Great', 'film"']),
        ('text\tlabel\n"a" b\t1\nc\t0\n', ['"a" b', "c"]),
        ('text\n" we are here .\nit works . "\nend\n', ['" we are here .', 'it works . "', "end"]),
        ('text\tlabel\nonly "inside" quotes\t1\n', ['only "inside" quotes']),
        ('text\tlabel\n"open until the end\t1\n', ['"open until the end']),
    ],
)
def test_tsv_texts_that_merely_have_quotes_stay_as_they_are(tmp_path: Path, content: str, texts: list[str]) -> None:
    assert [row.values["text"] for row in read_table(written(tmp_path, "data.tsv", content)).rows] == texts


def test_json_lines_keep_types_and_need_no_equal_keys(tmp_path: Path) -> None:
    path = written(
        tmp_path, "data.jsonl", b'\xef\xbb\xbf{"text": "a\\u2028b", "label": 1}\r\n\r\n{"text": "c", "x": null}\n'
    )
    table = read_table(path)
    assert table.columns == ("text", "label", "x")
    assert [row.values for row in table.rows] == [{"text": "a\u2028b", "label": 1}, {"text": "c", "x": None}]
    assert table.rows[1].where == f"{path}:3"


def test_parquet_tells_rows_by_number(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    labels = pyarrow.array(["good", "bad"]).dictionary_encode()  # a categorical of pandas
    parquet.write_table(pyarrow.table({"text": ["a", "b\nc"], "label": labels}), path)
    table = read_table(path)
    assert [row.values for row in table.rows] == [{"text": "a", "label": "good"}, {"text": "b\nc", "label": "bad"}]
    assert table.rows[1].where == f"{path}, row 2"


def test_plain_lines_are_texts(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "data.txt", 'one, "two"\r\n\r\n  three\tfour  \n'))
    assert [row.values["text"] for row in table.rows] == ['one, "two"', "three\tfour"]


def test_a_text_may_be_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    table = read_table(written(tmp_path, "data.csv", f"text,label\n{'long ' * 50_000},1\n"))
    assert len(table.rows[0].values["text"]) == 250_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.csv", b"text,label\nfine,1\na,b,0\n", "data.csv:3: 3 fields, but the header has 2: text, label"),
        ("data.csv", b'text,label\nfine,1\n"a" b,0\n', "data.csv:3: not well-formed CSV"),
        ("data.csv", b'text,label\n"never closed,1\n', "data.csv:2: not well-formed CSV"),
        ("data.csv", b"text,label\nfine,1\n\xff,0\n", "data.csv:3: not UTF-8"),
        ("data.csv", b"", "data.csv:1: there is no row"),
        ("data.tsv", b"text\tlabel\n", "data.tsv:1: there is no row"),
        ("data.csv", b"text,text\na,b\n", "data.csv:1: the column 'text' stands in the header more than once"),
        ("data.tsv", b"text\tlabel\nno label\n", "data.tsv:2: 1 fields, but the header has 2"),
        ("data.jsonl", b'{"text": "a"}\n[1]\n', "data.jsonl:2: a list where an object should be"),
        ("data.json", b'[{"text": "a"},\n{"text": "b"}]\n', "data.json:1: not JSON"),
        ("data.parquet", b"no such thing", "data.parquet: not a Parquet file"),
        ("data.xlsx", b"x", "data.xlsx: files end in .csv, .tsv"),
    ],
)
def test_what_cannot_be_read_is_named_with_file_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_table(written(tmp_path, name, content))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["missing.csv", "x" * 5_000, "nul\0.csv", ""])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_table(tmp_path / name)
