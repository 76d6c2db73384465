"""Columns are found by the names that data sets use, labels by name or number; what does not fit is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roast_optim.evaluation.columns import Columns, FileSet, LabelledText, cell, read_set
from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.labels import LabelNumbers, names_in, whole_number
from roast_optim.evaluation.sets import Role
from roast_optim.evaluation.text_files import read_sets, short_names


def written(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def rows(*labels: str, name: str = "set") -> FileSet:
    """A set with these labels."""
    return FileSet(
        name, "shift", [LabelledText(f"{name}.csv:{line}", ("x",), each) for line, each in enumerate(labels, 2)]
    )


def numbers(names: tuple[str, ...], *sets: FileSet) -> list[list[int]]:
    reader = LabelNumbers(names, "model 'm'", sets)
    return [[reader.number(row) for row in each.rows] for each in sets]


# -------------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("header", "texts", "label"),
    [
        ("sentence,label", ("sentence",), "label"),
        ("id,Text,Label", ("Text",), "Label"),
        ("label,idx,premise,hypothesis", ("premise", "hypothesis"), "label"),
        ("question,sentence,label", ("question", "sentence"), "label"),
        ("sentence2,sentence1,gold_label", ("sentence1", "sentence2"), "gold_label"),
        ("what they wrote,category", ("what they wrote",), "category"),
        ("text,sentiment", ("text",), "sentiment"),
    ],
)
def test_columns_are_guessed(tmp_path: Path, header: str, texts: tuple[str, ...], label: str) -> None:
    columns = header.split(",")
    path = written(tmp_path, "data.csv", header + "\n" + ",".join(f"<{each}>" for each in columns) + "\n")
    (row,) = read_set(path, "data", "shift", Columns()).rows
    assert row.texts == tuple(f"<{each}>" for each in texts)
    assert row.label == f"<{label}>"


def test_given_columns_win_and_anomalies_may_have_others(tmp_path: Path) -> None:
    given = Columns(("Body",), "stars")
    path = written(tmp_path, "data.csv", "text,body,label,stars\na,b,c,5\n")
    assert read_set(path, "data", "shift", given).rows == [LabelledText(f"{path}:2", ("b",), "5")]
    path = written(tmp_path, "strange.csv", "text,n\na,1\n")
    assert read_set(path, "strange", "anomaly", given).rows == [LabelledText(f"{path}:2", ("a",), None)]


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        (
            "text,score\na,1\n",
            Columns(),
            ":1: no column is called label or labels; the header has text, score",
        ),
        ("left,right,label\na,b,1\n", Columns(), ":1: which column holds the texts? The header has left, right, label"),
        ("text,label\na,1\n", Columns(("body",)), ":1: column 'body' is missing; the header has text, label"),
        ("text,label\na,1\n", Columns(label="stars"), ":1: column 'stars' is missing"),
        ("text,label\na,1\n ,0\n", Columns(), ":3: the column 'text' is empty"),
        ("text,label\na,1\nb,\n", Columns(), ":3: the column 'label' is empty"),
    ],
)
def test_a_column_or_value_that_is_missing_is_named_with_file_and_line(
    tmp_path: Path, text: str, given: Columns, message: str
) -> None:
    path = written(tmp_path, "data.csv", text)
    with pytest.raises(UserError) as caught:
        read_set(path, "data", "shift", given)
    assert f"{path}{message}" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"), [(1, "1"), (1.0, "1"), (True, "1"), (False, "0"), (0.5, "0.5"), ("a", "a"), (-1, "-1")]
)
def test_values_as_text(value: Any, text: str) -> None:
    assert cell(value, "label", "here") == text


@pytest.mark.parametrize("value", [None, "", "  ", float("nan"), [], ["a"], {"a": 1}])
def test_values_that_are_no_text_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match="here: the column 'label'"):
        cell(value, "label", "here")


# --------------------------------------------------------------------------------------------------------------- labels


def test_labels_are_read_by_name_by_name_in_other_case_and_by_number() -> None:
    names = ("negative", "positive")
    assert numbers(names, rows("negative", "Positive", " POSITIVE ".strip(), "0", "1", "1.0")) == [[0, 1, 1, 0, 1, 1]]


def test_names_that_differ_by_case_alone_are_told_apart() -> None:
    assert numbers(("us", "US"), rows("US", "us")) == [[1, 0]]
    with pytest.raises(UserError, match="unknown label 'Us'"):
        numbers(("us", "US"), rows("Us"))


def test_names_that_are_numbers_are_read_in_one_way_in_all_sets() -> None:
    stars = ("1", "2", "3")
    assert numbers(stars, rows("1", "3"), rows("2")) == [[0, 2], [1]]
    assert numbers(stars, rows("1", "2"), rows("0", name="other")) == [[1, 2], [0]]
    with pytest.raises(UserError, match=r"other\.csv:2: unknown label '7'"):
        numbers(stars, rows("1", "2"), rows("7", name="other"))


@given(st.permutations(["0", "1", "2", "3"]), st.lists(st.integers(0, 3), min_size=1))
def test_names_that_are_numbers_in_any_order_are_names_where_all_labels_are(
    names: list[str], chosen: list[int]
) -> None:
    assert numbers(tuple(names), rows(*(names[each] for each in chosen))) == [chosen]


@pytest.mark.parametrize("label", ["neutral", "2", "-1", "0.5", "1e0", "LABEL_1"])
def test_an_unknown_label_is_named_with_file_and_line(label: str) -> None:
    with pytest.raises(UserError) as caught:
        numbers(("negative", "positive"), rows("negative", label))
    message = f"set.csv:3: unknown label {label!r}; model 'm' has 0 (negative), 1 (positive)"
    assert str(caught.value) == message


def test_where_a_model_names_no_labels_the_cure_is_told() -> None:
    with pytest.raises(UserError, match=r"LABEL_1\); name them in this order with --label-names"):
        numbers(("LABEL_0", "LABEL_1"), rows("good"))


@pytest.mark.parametrize(("text", "number"), [("3", 3), ("-1", -1), ("2.0", 2), ("x", None), ("1.5", None), ("", None)])
def test_whole_numbers(text: str, number: int | None) -> None:
    assert whole_number(text) == number


def test_the_labels_of_sets_are_ordered_as_numbers_or_by_the_alphabet() -> None:
    assert names_in([rows("10", "9", "-1")]) == ("-1", "9", "10")
    assert names_in([rows("spam", "Ham"), rows("ham", "SPAM", "bulk")]) == ("bulk", "Ham", "spam")
    assert names_in([rows("1", "x")]) == ("1", "x")


# ----------------------------------------------------------------------------------------------------------------- sets


def test_a_set_of_one_class_is_named_and_refused_where_all_else_rests_on_it(tmp_path: Path) -> None:
    both = written(tmp_path, "both.csv", "text,label\na,yes\nb,no\n")
    one = written(tmp_path, "one.csv", "text,label\na,yes\nb,Yes\nc,yes\n")
    problem = f"{one}:2: all rows from here to {one}:4 have the label 'yes'"
    _, notes = read_sets({"in_distribution": [both], "adversarial": [one]}, Columns())
    assert len(notes) == 1
    assert notes[0].startswith(problem)
    with pytest.raises(UserError) as caught:
        read_sets({"in_distribution": [one]}, Columns())
    assert str(caught.value).startswith(problem)


def test_sets_of_pairs_and_of_single_texts_do_not_mix_but_for_anomalies(tmp_path: Path) -> None:
    pairs = written(tmp_path, "pairs.csv", "premise,hypothesis,label\na,b,1\nc,d,0\n")
    single = written(tmp_path, "single.csv", "text,label\na,1\nb,0\n")
    files: dict[Role, list[Path]] = {"in_distribution": [pairs], "anomaly": [single]}
    sets, _ = read_sets(files, Columns())
    assert [each.rows[0].texts for each in sets] == [("a", "b"), ("a",)]
    with pytest.raises(UserError, match=r"single\.csv:2: 1 text\(s\) per row, but .*pairs\.csv:2: 2"):
        read_sets({"in_distribution": [pairs], "shift": [single]}, Columns())


def test_a_file_that_is_given_twice_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "data.csv", "text,label\na,1\nb,0\n")
    with pytest.raises(UserError, match=r"data\.csv is given twice"):
        read_sets({"in_distribution": [path], "shift": [path]}, Columns())


def test_names_are_short_where_that_tells_them_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = [
        written(tmp_path / "a", "test.csv", ""),
        written(tmp_path / "b", "test.csv", ""),
        tmp_path / "a",
        "org/name-v1.5",
    ]
    assert short_names(paths) == [str(paths[0]), str(paths[1]), "a", "name-v1.5"]
