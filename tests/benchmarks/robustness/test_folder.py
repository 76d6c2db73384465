"""A folder with MANIFEST.tsv: what is read from it, and that every fault is named with file and line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.robustness.data import TASKS, Suite
from benchmarks.robustness.sources import load_suite
from benchmarks.robustness.sources.folder import load_folders, read_tsv
from roast_optim.evaluation.errors import UserError

SENTIMENT, ENTAILMENT = TASKS["sentiment"], TASKS["entailment"]
Files = dict[str, tuple[str, str, str, str]]
Writer = Callable[..., Path]

PAIRS = "premise\thypothesis\tlabel\n" + "".join(f"a {number}\tb {number}\t{number % 3}\n" for number in range(8))
ROWS = "sentence\tlabel\nfine\t1\npoor\t0\n"
TRAIN_AND_VALIDATION: Files = {
    "train.tsv": ("sentiment", "train", ROWS, ""),
    "dev.tsv": ("sentiment", "validation", ROWS, ""),
    "test.tsv": ("sentiment", "validation", ROWS, "in-distribution test"),
}


def test_every_role_is_read(suite: Suite) -> None:
    assert len(suite.train) == 64
    assert suite.validation.name == "dev"
    assert suite.in_distribution.name == "test"
    assert [(each.name, each.role, len(each.rows)) for each in suite.others] == [
        ("elsewhere", "shift", 22), ("tricky", "adversarial", 21), ("strange", "anomaly", 15),
    ]  # fmt: skip


def test_quotes_and_unicode_line_separators_are_ordinary_characters(write_folder: Writer) -> None:
    rows = 'sentence\tlabel\n"so" he said\t1\n a\u2028b "\t0\n'
    folder = write_folder({**TRAIN_AND_VALIDATION, "train.tsv": ("sentiment", "train", rows, "")})
    assert load_folders([folder], SENTIMENT).train["sentence"][:] == ['"so" he said', ' a\u2028b "']


def test_windows_line_ends_are_accepted(write_folder: Writer) -> None:
    rows = "sentence\tlabel\r\nfine\t1\r\n"
    folder = write_folder({**TRAIN_AND_VALIDATION, "train.tsv": ("sentiment", "train", rows, "")})
    assert load_folders([folder], SENTIMENT).train["label"][:] == [1]


def test_the_first_training_set_is_used_unless_another_is_named(write_folder: Writer) -> None:
    folder = write_folder(
        {**TRAIN_AND_VALIDATION, "more.tsv": ("sentiment", "train", "sentence\tlabel\nmore\t1\n", "")}
    )
    assert len(load_folders([folder], SENTIMENT).train) == 2
    assert load_folders([folder], SENTIMENT, "more").train["sentence"][:] == ["more"]
    with pytest.raises(UserError, match=r"'less'.*has train, more"):
        load_folders([folder], SENTIMENT, "less")


def test_a_single_validation_set_is_cut_in_halves_that_share_no_row(write_folder: Writer) -> None:
    suite = load_folders(
        [write_folder({"t.tsv": ("entailment", "train", PAIRS, ""), "v.tsv": ("entailment", "validation", PAIRS, "")})],
        ENTAILMENT,
    )
    first, second = suite.validation.texts(), suite.in_distribution.texts()
    assert len(first) == len(second) == 4
    assert len({*first, *second}) == 8


def test_merging_is_read_from_the_notes(write_folder: Writer) -> None:
    notes = "binary: 0 / 2; score by merging prediction 1 into 2"
    folder = write_folder(
        {
            "t.tsv": ("entailment", "train", PAIRS, ""),
            "v.tsv": ("entailment", "validation", PAIRS, ""),
            "wnli.tsv": ("entailment", "shift", PAIRS, notes),
        }
    )
    suite = load_folders([folder], ENTAILMENT)
    assert suite.role("shift")[0].merged_labels == {1: 2}
    assert suite.in_distribution.merged_labels == {}


def test_anomaly_sets_serve_the_tasks_that_their_notes_name(write_folder: Writer) -> None:
    folder = write_folder(
        {
            **TRAIN_AND_VALIDATION,
            "test.tsv": ("sentiment", "validation", ROWS, "in-distribution test; also anomaly set for entailment"),
            "t.tsv": ("entailment", "train", PAIRS, ""),
            "v.tsv": ("entailment", "validation", PAIRS, ""),
            "premises.tsv": ("both", "anomaly", "text\nhello\n", "anomaly set for sentiment"),
            "news.tsv": ("both", "anomaly", "text\nhello\n", ""),
        }
    )
    assert [each.name for each in load_folders([folder], SENTIMENT).role("anomaly")] == ["premises", "news"]
    assert [each.name for each in load_folders([folder], ENTAILMENT).role("anomaly")] == ["news", "test"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence\nfine\n", r"train\.tsv:1: column 'label' is missing; the header has sentence"),
        ("text\tlabel\nfine\t1\n", r"train\.tsv:1: column 'sentence' is missing"),
        ("sentence\tlabel\nfine\t1\npoor\t2\n", r"train\.tsv:3: unknown label '2'; .* 0 \(negative\), 1 \(positive\)"),
        ("sentence\tlabel\nfine\tgood\n", r"train\.tsv:2: unknown label 'good'"),
        ("sentence\tlabel\nfine\t-1\n", r"train\.tsv:2: unknown label '-1'"),
        ("sentence\tlabel\nfine\n", r"train\.tsv:2: 1 fields, but the header has 2"),
        ("sentence\tlabel\n \t1\n", r"train\.tsv:2: column 'sentence' is empty"),
        ("sentence\tlabel\n", r"train\.tsv:1: no row after the header"),
        ("", r"train\.tsv:1: the file is empty"),
    ],
)
def test_a_fault_in_a_data_file_is_named_with_its_line(write_folder: Writer, text: str, message: str) -> None:
    folder = write_folder({**TRAIN_AND_VALIDATION, "train.tsv": ("sentiment", "train", text, "")})
    with pytest.raises(UserError, match=message):
        load_folders([folder], SENTIMENT)


def test_bytes_that_are_not_utf8_are_named_with_their_line(write_folder: Writer) -> None:
    folder = write_folder(TRAIN_AND_VALIDATION)
    (folder / "train.tsv").write_bytes(b"sentence\tlabel\nfine\t1\n\xff\t0\n")
    with pytest.raises(UserError, match=r"train\.tsv:3: not UTF-8"):
        load_folders([folder], SENTIMENT)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\ttrain\t", "\ttraining\t", r"MANIFEST\.tsv:2: unknown role 'training'; known: train, validation"),
        ("sentiment\ttrain", "emotion\ttrain", r"MANIFEST\.tsv:2: unknown task 'emotion'"),
        ("train.tsv", "lost.tsv", r"MANIFEST\.tsv:2: file 'lost\.tsv' does not exist"),
        ("train\t2", "train\ttwo", r"MANIFEST\.tsv:2: rows is 'two'"),
        ("train\t2", "train\t3", r"MANIFEST\.tsv:2: rows is 3, but .*train\.tsv has 2"),
        ("role", "rolle", r"MANIFEST\.tsv:1: column 'role' is missing"),
        ("sentiment\ttrain", "entailment\ttrain", r"MANIFEST\.tsv: no set with role train"),
        ("\tvalidation\t", "\tshift\t", r"MANIFEST\.tsv: no set with role validation for task 'sentiment'"),
    ],
)
def test_a_fault_in_the_manifest_is_named(write_folder: Writer, old: str, new: str, message: str) -> None:
    folder = write_folder(TRAIN_AND_VALIDATION)
    manifest = folder / "MANIFEST.tsv"
    manifest.write_text(manifest.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        load_folders([folder], SENTIMENT)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"data {str(tmp_path)!r}: give 'demo' or 'hub' alone, or folders")):
        load_suite([str(tmp_path)], SENTIMENT)


def test_sets_of_several_folders_make_one_suite(sentiment_folder: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    (more / "news.tsv").write_text("text\nsomething else\n")
    (more / "MANIFEST.tsv").write_text("file\ttask\trole\trows\tsource\tlicence\nnews.tsv\tboth\tanomaly\t1\tours\t\n")
    suite = load_folders([sentiment_folder, more], SENTIMENT)
    assert [each.name for each in suite.role("anomaly")] == ["strange", "news"]
    assert suite.source.count("+") == 1
    assert suite.digest != load_folders([sentiment_folder], SENTIMENT).digest


@pytest.mark.parametrize("file", ["train.tsv", "train.txt"])
def test_two_sets_of_one_name_are_refused(sentiment_folder: Path, tmp_path: Path, file: str) -> None:
    more = tmp_path / "more"
    more.mkdir()
    (more / file).write_text("text\nsomething else\n")
    (more / "MANIFEST.tsv").write_text(f"file\ttask\trole\trows\tsource\tlicence\n{file}\tboth\tanomaly\t1\tours\t\n")
    with pytest.raises(
        UserError, match=r"MANIFEST\.tsv:2: 'train\..*' and .*MANIFEST\.tsv:2: 'train\.tsv' share a name"
    ):
        load_folders([sentiment_folder, more], SENTIMENT)


@pytest.mark.parametrize("file", ["../outside.tsv", "/etc/passwd"])
def test_a_manifest_may_not_point_outside_its_folder(sentiment_folder: Path, tmp_path: Path, file: str) -> None:
    (tmp_path / "outside.tsv").write_text("text\nsecret\n")
    with (sentiment_folder / "MANIFEST.tsv").open("a") as manifest:
        manifest.write(f"{file}\tboth\tanomaly\t1\tours\t\n")
    with pytest.raises(UserError, match=r"MANIFEST\.tsv:8: file '.*' lies outside"):
        load_folders([sentiment_folder], SENTIMENT)


def test_the_digest_changes_with_any_text_or_label(write_folder: Writer, tmp_path: Path) -> None:
    text = "sentence\tlabel\na b\t1\nc\t0\n"

    def digest(train: str) -> str:
        folder = write_folder(
            {"t.tsv": ("sentiment", "train", train, ""), "v.tsv": ("sentiment", "validation", text, "")}
        )
        found = load_folders([folder], SENTIMENT).digest
        shutil.rmtree(folder)
        return found

    variants = [text, text.replace("a b", "a B"), text.replace("1", "0"), text.replace("a b\t1\nc\t0", "c\t0\na b\t1")]
    assert len({digest(each) for each in variants}) == 4
    assert digest(text) == digest(text)


def test_a_file_with_cr_alone_is_told_in_a_message_that_fits_a_screen(tmp_path: Path) -> None:
    path = tmp_path / "cr.tsv"
    path.write_bytes(b"sentence\tlabel\r" + b"a good film\t1\r" * 20_000)
    with pytest.raises(UserError, match="its lines end with CR alone") as caught:
        list(read_tsv(path, ("sentence", "label")))
    assert len(str(caught.value)) < 1100


def test_a_long_label_is_told_in_a_message_that_fits_a_screen(write_folder: Writer) -> None:
    text = "sentence\tlabel\nfine\t" + "9" * 100_000 + "\n"
    folder = write_folder({"t.tsv": ("sentiment", "train", text, ""), "v.tsv": ("sentiment", "validation", text, "")})
    with pytest.raises(UserError, match=r"unknown label '999.*characters \.\.\..*1 \(positive\)") as caught:
        load_folders([folder], SENTIMENT)
    assert len(str(caught.value)) < 1100


@pytest.mark.parametrize("name", ["y" * 300 + ".tsv", "a\0b.tsv"])
def test_a_name_that_no_file_can_have_is_told(sentiment_folder: Path, name: str) -> None:
    with (sentiment_folder / "MANIFEST.tsv").open("a") as manifest:
        manifest.write(f"{name}\tboth\tanomaly\t1\tours\t\n")
    with pytest.raises(UserError, match=r"MANIFEST\.tsv:8: file '.*' does not exist"):
        load_folders([sentiment_folder], SENTIMENT)
    with pytest.raises(UserError, match="data 'yyy"):
        load_suite(["y" * 5000], SENTIMENT)
