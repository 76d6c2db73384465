"""Loading, batching and predicting."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks.robustness.data import TASKS
from benchmarks.robustness.models import TrainingBatches, load_classifier
from roast_optim.evaluation.classifier import Classifier
from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.sets import Texts

SENTIMENT, ENTAILMENT = TASKS["sentiment"], TASKS["entailment"]
TEXTS: list[Texts] = [("this film is really great , lovely and superb",), ("awful",), ("a tedious story",)] * 20


def test_predictions_come_in_the_order_of_the_texts_and_leave_the_mode_alone(classifier: Classifier) -> None:
    classifier.model.train()
    logits = classifier.predict(TEXTS)
    assert classifier.model.training
    assert logits.shape == (60, 2)
    torch.testing.assert_close(logits[1:2], classifier.predict([("awful",)]))
    torch.testing.assert_close(logits[:3], logits[3:6])


def test_pairs_are_encoded_together(model_folder: Path) -> None:
    classifier = load_classifier(str(model_folder), ENTAILMENT, max_length=6, seed=0)
    features = classifier.encode([("great film", "awful"), ("great", "film " * 9)])
    tokens = classifier.tokenizer.convert_ids_to_tokens(features[0]["input_ids"])
    assert [each for each in tokens if not each.startswith("[")] == ["great", "film", "awful"]
    assert len(features[1]["input_ids"]) == 6
    assert classifier.predict([("great film", "awful")]).shape == (1, 3)


def test_the_head_depends_on_the_seed_alone(model_folder: Path) -> None:
    heads = []
    for seed in (0, 1, 0):
        torch.rand(seed + 3)
        heads.append(load_classifier(str(model_folder), SENTIMENT, 32, seed).model.state_dict()["classifier.weight"])
    assert torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], heads[1])


def test_loading_leaves_verbosity_and_bars_as_they_were(model_folder: Path) -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_classifier(str(model_folder), SENTIMENT, 32, 0)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_model_for_other_labels_is_refused(classifier_folder: Callable[[int], Path]) -> None:
    folder = classifier_folder(3)
    with pytest.raises(UserError, match=r"classifies into 3 labels, but task 'sentiment' has 2: 0 \(negative\)"):
        load_classifier(str(folder), SENTIMENT, 32, 0)
    assert load_classifier(str(folder), ENTAILMENT, 32, 0).model.config.num_labels == 3


def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing here' cannot be loaded"):
        load_classifier(str(tmp_path / "nothing here"), SENTIMENT, 32, 0)


def test_an_epoch_holds_every_row_once_in_batches_of_similar_length(classifier: Classifier) -> None:
    batches = TrainingBatches(classifier, TEXTS, [0] * 60, batch_size=8, seed=3)
    order = batches.order(0)
    assert len(order) == len(batches) == 8
    assert sorted(row for batch in order for row in batch) == list(range(60))
    assert all(len(batch) == 8 for batch in order if len(batch) != 60 % 8)
    spread = [{len(batches.features[row]["input_ids"]) for row in batch} for batch in order]
    assert sum(len(lengths) == 1 for lengths in spread) >= 5  # of three lengths, at most two batches hold two


def test_the_order_depends_on_seed_and_epoch_alone(classifier: Classifier) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        torch.rand(seed + 1)
        return TrainingBatches(classifier, TEXTS, [0] * 60, 8, seed).order(epoch)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_batches_are_padded_to_their_longest_row(classifier: Classifier) -> None:
    batches = TrainingBatches(classifier, TEXTS, [0, 1, 0] * 20, batch_size=8, seed=0)
    for batch in batches.epoch(0):
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]
        assert batch["labels"].shape == batch["input_ids"].shape[:1]


@pytest.mark.parametrize("content", ["a pickle", "garbage", "half"])
def test_weights_that_cannot_be_read_are_told_and_no_pickle_runs(
    model_folder: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    if content == "a pickle":
        torch.save({"weight": RunsWhenLoaded()}, folder / "pytorch_model.bin")
    elif content == "garbage":
        (folder / "pytorch_model.bin").write_bytes(b"no weights")
    else:
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be loaded: "):
        load_classifier(str(folder), TASKS["sentiment"], 32, 0)
    assert "it ran" not in capsys.readouterr().out


class RunsWhenLoaded:
    def __reduce__(self) -> Any:
        return print, ("it ran",)


def test_a_model_without_its_tokenizer_is_named(model_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model_folder / name, tmp_path / name)
    with pytest.raises(UserError, match="comes without its tokenizer"):
        load_classifier(str(tmp_path), TASKS["sentiment"], 16, 0)
