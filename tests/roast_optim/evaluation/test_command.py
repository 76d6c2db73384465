"""`python -m roast_optim.evaluation` from its arguments to its files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from roast_optim.evaluation import __main__ as command
from roast_optim.evaluation.classifier import load_classifier
from tests.support.tiny_classifier import BAD, GOOD, save_model, sentences

NAMES = ("negative", "positive")


def counting_model(folder: Path, names: tuple[str, ...] = NAMES, sharpness: float = 8.0) -> Path:
    """A BERT that is right by construction: good words carry one direction, bad words its opposite, and the head reads
    it off. With other names the order of its outputs follows them.
    """
    save_model(folder, labels=2, dropout=0.0)
    model = BertForSequenceClassification.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
        for name, param in model.named_parameters():
            if "LayerNorm.weight" in name:
                param.fill_(1.0)
        table = model.bert.embeddings.word_embeddings.weight
        for words, sign in ((GOOD, 1.0), (BAD, -1.0)):
            for word in words:
                table[tokenizer.convert_tokens_to_ids(word), :2] = torch.tensor([sign, -sign])
        for layer in model.bert.encoder.layer:  # attention averages over the tokens, so that [CLS] learns of all words
            layer.attention.self.value.weight.copy_(torch.eye(32))
            layer.attention.output.dense.weight.copy_(torch.eye(32))
        model.bert.pooler.dense.weight.copy_(torch.eye(32))
        outputs = torch.tensor([-1.0, 1.0]) if names[0] == "negative" else torch.tensor([1.0, -1.0])
        model.classifier.weight[:, 0] = sharpness * outputs
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_model(tmp_path_factory.mktemp("models") / "counting")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A file of every kind: names and numbers as labels, CRLF and a byte order mark."""
    made = {name: tmp_path / name for name in ("test.csv", "shop.tsv", "forum.jsonl", "tricky.csv", "strange.txt")}
    with made["test.csv"].open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)  # ends lines with CRLF
        writer.writerow(["Id", "Review", "Label"])
        writer.writerows([number, text, NAMES[label].title()] for number, (text, label) in enumerate(sentences(24, 1)))
    made["shop.tsv"].write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in sentences(20, 2)))
    lines = [json.dumps({"text": text, "label": NAMES[label]}) for text, label in sentences(21, 3)]
    made["forum.jsonl"].write_text("\n".join(lines))
    made["tricky.csv"].write_text("text,label\n" + "".join(f'"{text}",positive\n' for text, _ in sentences(10, 4)))
    made["strange.txt"].write_text("film that this\n" * 9)
    return made


def run(files: dict[str, Path], output: Path, *models: Path, **options: Any) -> int:
    arguments = [
        "--in-distribution", files["test.csv"], "--shift", files["shop.tsv"], files["forum.jsonl"],
        "--adversarial", files["tricky.csv"], "--anomaly", files["strange.txt"], "--output", output,
    ]  # fmt: skip
    for model in models:
        arguments += ["--model", model]
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    return command.main([str(each) for each in arguments])


def test_a_model_is_measured_on_files_of_any_kind(
    trained: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, tmp_path / "out", trained, attack=8) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    scores = found["models"]["counting"]
    assert scores["labels"] == list(NAMES)
    assert list(scores["per_set"]) == ["test", "shop", "forum", "tricky", "character_swaps", "strange"]
    assert [scores["per_set"][name]["rows"] for name in ("test", "shop", "forum", "tricky")] == [24, 20, 21, 10]
    assert scores["acc_in"] == scores["acc_shift"] == 1.0
    assert scores["per_set"]["tricky"]["accuracy"] == 0.5
    assert found["settings"]["attack"] == 8
    assert (tmp_path / "out" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "100.0" in printed
    assert f"note: {files['tricky.csv']}:2: all rows from here to {files['tricky.csv']}:11 have the label" in printed


def test_models_with_other_orders_of_labels_are_compared_by_their_names(
    trained: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    files["shop.tsv"].write_text(
        files["shop.tsv"].read_text().replace("\t0", "\tNEGATIVE").replace("\t1", "\tPOSITIVE")
    )
    other = counting_model(tmp_path / "reversed", names=("positive", "negative"))
    assert run(files, tmp_path / "out", trained, other) == 0
    models = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"]
    assert models["reversed"]["labels"] == ["positive", "negative"]
    assert models["counting"]["acc_shift"] == models["reversed"]["acc_shift"] == 1.0


def test_numbers_mean_nothing_where_models_number_their_labels_differently(
    trained: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = counting_model(tmp_path / "reversed", names=("positive", "negative"))
    assert run(files, tmp_path / "out", trained, other) == 2
    assert "negative, positive and model" in " ".join(capsys.readouterr().err.split())


def test_labels_of_a_model_that_names_none_can_be_named(
    model_folder: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, tmp_path / "out", model_folder) == 2
    assert "test.csv:2: unknown label 'Negative'" in capsys.readouterr().err
    assert run(files, tmp_path / "out", model_folder, label_names=["negative", "positive"]) == 0
    (scores,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"].values()
    assert scores["labels"] == list(NAMES)
    assert run(files, tmp_path / "out", model_folder, label_names=["a", "b", "c"]) == 2
    assert "has 2 labels" in capsys.readouterr().err


def test_texts_that_are_cut_are_counted(
    trained: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, tmp_path / "out", trained, max_length=6) == 0
    texts = [text for text, _ in sentences(24, 1)]
    long = sum(len(text.split()) > 6 for text in texts)
    assert 0 < long < 24
    assert f"note: counting: {long} of 24 texts of test are cut to 6 tokens" in capsys.readouterr().out


def unknown_label(files: dict[str, Path]) -> str:
    lines = files["forum.jsonl"].read_text().splitlines()
    lines[6] = lines[6].replace("negative", "mixed")
    files["forum.jsonl"].write_text("\n".join(lines))
    return "forum.jsonl:7: unknown label 'mixed'"


def missing_column(files: dict[str, Path]) -> str:
    files["shop.tsv"].write_text(files["shop.tsv"].read_text().replace("label", "score", 1))
    return "shop.tsv:1: no column is called label"


def one_class(files: dict[str, Path]) -> str:
    files["test.csv"].write_text("text,label\na,negative\nb,negative\n")
    return "test.csv:2: all rows from here to"


def no_file(files: dict[str, Path]) -> str:
    files["tricky.csv"].unlink()
    return "tricky.csv: there is no such file"


@pytest.mark.parametrize("spoil", [unknown_label, missing_column, one_class, no_file])
def test_what_cannot_be_used_is_named_before_a_model_is_loaded(
    trained: Path,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[dict[str, Path]], str],
) -> None:
    monkeypatch.delattr(command, "load_classifier")
    message = spoil(files)
    assert run(files, tmp_path / "out", trained) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def without_head(folder: Path, trained: Path) -> str:
    BertModel.from_pretrained(trained).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(trained).save_pretrained(folder)
    return "has no trained classification head"


def with_one_output(folder: Path, trained: Path) -> str:
    save_model(folder, labels=1)
    return "does not choose one of several labels"


def with_weights_that_are_not_finite(folder: Path, trained: Path) -> str:
    classifier = load_classifier(str(trained))
    classifier.model.classifier.bias.data.fill_(float("nan"))
    classifier.model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    return "not finite"


def without_a_tokenizer(folder: Path, trained: Path) -> str:
    BertForSequenceClassification.from_pretrained(trained).save_pretrained(folder)
    return "comes without its tokenizer; tokenizer.save_pretrained("


def that_is_not_there(folder: Path, trained: Path) -> str:
    return "cannot be loaded"


@pytest.mark.parametrize(
    "make",
    [without_head, with_one_output, with_weights_that_are_not_finite, without_a_tokenizer, that_is_not_there],
    ids=lambda make: make.__name__,
)
def test_models_that_cannot_be_measured_are_named(
    trained: Path,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path, Path], str],
) -> None:
    folder = tmp_path / "model"
    message = make(folder, trained)
    assert run(files, tmp_path / "out", folder, label_names=["negative", "positive"]) == 2
    printed = capsys.readouterr().err
    assert f"model '{folder}'" in printed
    assert message in printed
    assert "Traceback" not in printed


def test_ctrl_c_leaves_no_traceback(
    trained: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "evaluate", interrupted)
    assert run(files, tmp_path / "out", trained) == 130
    assert not (tmp_path / "out").exists()
