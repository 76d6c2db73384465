"""What the adversarial objective costs on BERT-base, made from its config alone, and its two kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from benchmarks.kernels.objective import STEP_SIZE, divergences, perturbations, token_batch, training_step
from benchmarks.kernels.pairs import Contestant
from roast_optim import AdversarialEmbedding

from ..report import Report, run_stage
from ..steps import DTYPES
from ..timing import copy_of, figures, in_turn

BATCH = (32, 128)
EMBEDDING = (32, 512, 768)
LOGITS = (1024, 30522)
PLAIN = "plain"


def adversary(report: Report) -> None:
    """The kernels first: they are quick."""
    for dtype in DTYPES:
        with report.going_on(f"{dtype}: kernels"):
            kernels(report, dtype)
    forward_and_backward(report)


def kernels(report: Report, dtype: str) -> None:
    """Each beside plain torch and a copy."""
    embedding, logits = ((2, 8, 16), (4, 16)) if report.dry_run else (EMBEDDING, LOGITS)
    pairs = {
        f"perturbation, {_size(EMBEDDING)}": perturbations(embedding, report.device, "triton", DTYPES[dtype]),
        f"symmetric KL, {_size(LOGITS)}": divergences(logits, report.device, "triton", DTYPES[dtype]),
    }
    for what, (candidate, opponent) in pairs.items():
        copy = copy_of(candidate, report)
        times = in_turn([candidate, opponent, copy], report)
        report.measured(f"{dtype}: {what}", **figures(candidate, times, copy, opponent.name))
        report.measured(f"{dtype}: {what}, {opponent.name}", **figures(opponent, times))


def forward_and_backward(report: Report) -> None:
    """One training step without an optimizer, in bfloat16 autocast."""
    contestants = [Contestant(PLAIN, step(report, None))]
    contestants += [Contestant(gradient, step(report, gradient)) for gradient in ("exact", "fast")]
    times = in_turn(contestants, report)
    for contestant in contestants:
        what = f"BERT-base, {_size(BATCH)}: {contestant.name}"
        report.measured(what, **figures(contestant, times, opponent=PLAIN))


def step(report: Report, gradient: str | None) -> Callable[[], None]:
    """Plain, or with the adversary; every model has the same weights."""
    model = bert(report)
    call: Callable[..., Any] = model
    if gradient is not None:
        call = AdversarialEmbedding(model, step_size=STEP_SIZE, consistency_weight=0.01, gradient=gradient)
    batch = token_batch((2, 8) if report.dry_run else BATCH, model.config.vocab_size, report.device)
    return training_step(torch.autocast(report.device.type, torch.bfloat16)(call), model, batch)


def bert(report: Report) -> Any:
    """A classifier in training mode, with random weights."""
    torch.manual_seed(0)
    tiny: dict[str, Any] = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    config = transformers.BertConfig(**({**tiny, "vocab_size": 100} if report.dry_run else {}))
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model.to(report.device).train()


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


if __name__ == "__main__":
    run_stage(adversary)
