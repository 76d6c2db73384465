"""Every model of transformers that trains on tokens trains with the optimizer and the adversary."""

from __future__ import annotations

import gc
import logging
import warnings
from typing import Any

import pytest
import transformers
from torch import nn

from roast_optim import AdversarialEmbedding, RoastAdamW, selective_param_groups
from roast_optim.param_groups import always_updated_param_groups
from tests.roast_optim import tiny_transformers

LARGEST = 30_000_000  # parameters; what is larger has a part that its config does not shrink
# Beam-search heads: the loss comes without logits in training, so that there is nothing to compare.
WITHOUT_LOGITS = "has no logits for the consistency loss"


def trainable(name: str, model_class: type[Any]) -> int | None:
    """The first variant of its sizes that trains alone; None: none does, so that this says nothing of the adversary."""
    for variant in range(len(tiny_transformers.VARIANTS)):
        try:
            model = tiny_transformers.build(model_class, variant)
            if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
                return None
            model(**tiny_transformers.batch(name)).loss.backward()
        except (
            Exception
        ):  # an option that these sizes do not suit, an input that is no token, a package that is missing
            continue
        if any(parameter.grad is not None for parameter in model.parameters()):
            return variant
    return None


def groups(model: nn.Module) -> list[dict[str, Any]]:
    try:
        return selective_param_groups(model, 0.01)
    except ValueError:  # no transformer blocks
        return always_updated_param_groups(model, 0.01)


def train(model: nn.Module, name: str, gradient: str) -> str:
    """Two steps; what there is to say of them."""
    remark = ""
    adversary = AdversarialEmbedding(model, gradient=gradient)
    optimizer = RoastAdamW(groups(model), lr=1e-3, backend="reference", refresh_every=1)
    for step in range(2):
        batch = tiny_transformers.batch(name, step)
        try:
            loss = adversary(**batch).loss
        except ValueError as error:
            if WITHOUT_LOGITS not in str(error):
                raise
            remark = "consistency_weight=0: " + WITHOUT_LOGITS
            adversary.consistency_weight = 0.0
            loss = adversary(**batch).loss
        assert loss.isfinite()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return remark


@pytest.mark.slow
def test_every_model_that_trains_alone_trains_with_the_adversary(capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps each, with exact and with fast gradients; prints how many do, and each exception."""
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    seen, passed = 0, 0
    remarks: list[str] = []
    failures: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, model_class in tiny_transformers.models():
            variant = trainable(name, model_class)
            if variant is None:
                continue
            for gradient in ("exact", "fast"):
                seen += 1
                try:
                    remark = train(tiny_transformers.build(model_class, variant), name, gradient)
                    remarks += [f"{name}, {gradient}: {remark}"] if remark else []
                    passed += 1
                except Exception as error:
                    failures.append(f"{name}, {gradient}: {type(error).__name__}: {error}"[:300])
            gc.collect()
    logging.disable(logging.NOTSET)
    with capsys.disabled():
        print(f"\n{passed} of {seen} trainings of {seen // 2} models", *remarks, *failures, sep="\n  ")
    assert seen >= 440
    assert not failures
