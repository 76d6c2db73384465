"""Tiny classifiers for the tests of the evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from roast_optim.evaluation.classifier import Classifier, load_classifier
from tests.support.tiny_classifier import save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of two labels that nobody trained."""
    return save_model(tmp_path_factory.mktemp("model"), labels=2)


@pytest.fixture
def classifier(model_folder: Path) -> Classifier:
    return load_classifier(str(model_folder))
