"""The candidates: each part does what its equation says, and nothing while it is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.robustness.data import TASKS, Suite
from benchmarks.robustness.methods import create_method
from benchmarks.robustness.methods.candidate import Candidate
from benchmarks.robustness.methods.perturbed_block import relative_step
from benchmarks.robustness.methods.ranked_updates import RankedUpdates
from benchmarks.robustness.models import load_classifier
from benchmarks.robustness.training import Recipe, train

SENTIMENT = TASKS["sentiment"]
RECIPE = Recipe(epochs=2, learning_rate=1e-3)


def trained(model: Path, suite: Suite, name: str, **options: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights after training, and what the method told of it."""
    classifier = load_classifier(str(model), SENTIMENT, 32, 0)
    method = create_method(name, SENTIMENT, options)
    train(classifier, method, suite.train, RECIPE, 0)
    return {key: value.clone() for key, value in classifier.model.state_dict().items()}, method.facts()


def ranked(**changes: Any) -> tuple[RankedUpdates, nn.Parameter]:
    param = nn.Parameter(torch.arange(1.0, 9.0))
    optimizer = SGD([{"params": [param], "selective": True, "weight_decay": 0.5}], lr=0.1)
    options = {"alpha": 0.5, "beta": 2.0, "importance": "gradient", "importance_decay": 0.0, "pull": 1.0, "seed": 0}
    return RankedUpdates(optimizer, **{**options, **changes}), param


OFF = {
    "step_size": 0.0,
    "selection": "none",
    "pull": 0.0,
    "teacher_weight": 0.0,
    "head_epochs": 0,
    "measure_batches": 0,
}


@pytest.mark.parametrize("name", ["select_update", "bounded_adversary", "smooth_teacher", "combined"])
def test_with_everything_off_a_candidate_is_plain_fine_tuning(model_folder: Path, suite: Suite, name: str) -> None:
    off, _ = trained(model_folder, suite, name, **OFF)
    plain, _ = trained(model_folder, suite, "plain")
    for key, value in plain.items():
        assert torch.equal(off[key], value), key


def test_keep_probabilities_follow_the_rank_and_ties_share_one() -> None:
    updates, param = ranked()
    param.grad = torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    updates.accumulate()
    updates.refresh()
    ranks = torch.tensor([1.0, 1.0, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]) / 8
    torch.testing.assert_close(updates.tensors[0].keep, torch.sigmoid(4 * (ranks - 0.5)))


def test_an_update_is_taken_back_where_it_is_not_kept_and_weight_decay_stays() -> None:
    updates, param = ranked()
    param.grad = torch.ones(8)
    updates.accumulate()
    updates.refresh()
    updates.tensors[0].keep = torch.tensor([0.0, 1.0] * 4)  # drawn as 1/256 and 255/256
    updates.remember()
    before = param.detach().clone()
    with torch.no_grad():
        param.mul_(1 - 0.1 * 0.5).sub_(7.0)
    updates.select_updates(0.1, soft=False)
    moved = torch.tensor([0.0, 7.0] * 4)
    torch.testing.assert_close(param.detach(), before * 0.95 - moved)


def test_a_soft_selection_scales_the_update() -> None:
    updates, param = ranked()
    param.grad = torch.ones(8)
    updates.tensors[0].keep = torch.linspace(0, 1, 8)
    updates.remember()
    before = param.detach().clone()
    with torch.no_grad():
        param.mul_(1 - 0.1 * 0.5).sub_(7.0)
    updates.select_updates(0.1, soft=True)
    torch.testing.assert_close(param.detach(), before * 0.95 - 7 * torch.linspace(0, 1, 8))


@pytest.mark.parametrize("by_rank", [False, True])
def test_the_pull_moves_a_share_of_the_way_back(by_rank: bool) -> None:
    updates, param = ranked()
    start = param.detach().clone()
    keep = torch.linspace(0, 1, 8)
    updates.tensors[0].keep = keep
    with torch.no_grad():
        param.add_(1.0)
    updates.pull_back(0.25, by_rank=by_rank)
    torch.testing.assert_close(param.detach(), start + 1 - 0.25 * (1 - keep if by_rank else torch.ones(8)))


def test_agreement_counts_only_gradients_of_one_sign() -> None:
    updates, param = ranked(importance="agreement")
    param.grad = torch.tensor([3.0, 1.0, -3.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    updates.tensors[0].clean_gradient = torch.tensor([1.0, 3.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    updates.accumulate()
    assert updates.tensors[0].scores[:4].tolist() == [2.0, 0.0, 2.0, 0.0]  # 1 * 2, 3 * -2, -1 * -2, 1 * -1


def test_a_relative_step_is_a_share_of_each_tokens_own_length() -> None:
    draw = torch.Generator().manual_seed(0)
    embeddings, gradient = torch.randn(2, 3, 5, generator=draw), torch.randn(2, 3, 5, generator=draw)
    gradient[0, 1] = 0
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    step = relative_step(embeddings, gradient * 1e-20, mask, 0.1)
    expected = 0.1 * embeddings.norm(dim=-1) * mask
    expected[0, 1] = 0
    torch.testing.assert_close(step.norm(dim=-1), expected)
    along = (step * gradient).sum(-1)
    torch.testing.assert_close(along, expected * gradient.norm(dim=-1))


def test_the_step_grows_along_the_ramp() -> None:
    method = Candidate(step_size=0.1, ramp_begin=0.2, ramp_end=0.6)

    class Progress:
        total_steps = 10
        step = 0

    heights = []
    for Progress.step in range(10):
        heights.append(method.height(Progress))  # type: ignore[arg-type]
    assert heights == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_a_held_step_grows_while_it_flips_too_little_and_shrinks_while_too_much() -> None:
    method = Candidate(step_size=0.1, hold=0.25)
    method.length = 0.1
    right, wrong = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[0.0, 1.0]] * 4)
    labels = torch.zeros(4, dtype=torch.long)
    method.watch(right, right, labels, 1.0)
    assert method.length > 0.1
    method.length = 0.1
    method.watch(right, wrong, labels, 1.0)
    assert method.length < 0.1
    method.length = 0.1
    method.watch(right, wrong, labels, 0.5)  # on the ramp it is not held yet
    assert method.length == 0.1


def test_of_a_batch_only_the_share_is_perturbed() -> None:
    method = Candidate(share=0.5)
    assert [len(method.perturbed_rows(rows)) for rows in (16, 7, 1)] == [8, 4, 1]
    assert method.perturbed_rows(16).tolist() != method.perturbed_rows(16).tolist()
    assert Candidate().perturbed_rows(5).tolist() == [0, 1, 2, 3, 4]


def test_ranks_come_after_32_64_128_steps_or_every_so_many() -> None:
    assert [step for step in range(1, 3100) if Candidate().is_due(step)] == [32, 64, 128, 256, 512, 1024, 2048, 3072]
    assert [step for step in range(1, 160) if Candidate(refresh_every=50).is_due(step)] == [50, 100, 150]


@pytest.mark.parametrize("name", ["bounded_adversary", "smooth_teacher", "agreement", "part_of_batch", "combined"])
def test_an_adversary_trains_leaves_no_hook_and_tells_its_step(model_folder: Path, suite: Suite, name: str) -> None:
    weights, facts = trained(model_folder, suite, name)
    plain, _ = trained(model_folder, suite, "plain")
    assert any(not torch.equal(weights[key], plain[key]) for key in plain)
    assert facts["last_step_size"] > 0
    assert 0 <= facts["flipped_share"] <= 1
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
