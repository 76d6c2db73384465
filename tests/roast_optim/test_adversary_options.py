"""Ramp, share, direction and ascents of the adversary: each equals its formula, and costs and changes nothing else."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from roast_optim import RoastAdamW, TaskLoss, selective_param_groups
from roast_optim.adversarial import AdversarialEmbedding
from roast_optim.adversary_draws import AdversaryDraws
from roast_optim.adversary_options import ADVERSARY_DEFAULTS, ADVERSARY_OPTIONS
from tests.models import ARCHITECTURES, PlainClassifier
from tests.oracles.ascent import ascent_objective
from tests.oracles.objective import Objective

BERT, GPT2, XLNET = ARCHITECTURES["bert"], ARCHITECTURES["gpt2"], ARCHITECTURES["xlnet"]
STEP = 0.25


def embeddings_of(model: nn.Module, module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda *call: seen.append(call[-1].detach()))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return seen[0]


def passes_of(model: nn.Module) -> list[int]:
    """A list that gets the number of rows of every pass."""
    rows: list[int] = []
    model.register_forward_hook(lambda module, args, kwargs, output: rows.append(len(output.logits)), with_kwargs=True)
    return rows


def assert_objective(adversary: AdversarialEmbedding, loss: Tensor, expected: Objective, model: nn.Module) -> None:
    for name in ("task", "adversarial", "consistency"):
        torch.testing.assert_close(
            adversary.last_losses[name], getattr(expected, name), rtol=2e-5, atol=1e-6, check_dtype=False, msg=name
        )
    wanted = expected.total(adversary.consistency_weight, adversary.adversarial_weight, adversary.clean_weight)
    torch.testing.assert_close(loss, wanted, rtol=2e-5, atol=1e-6, check_dtype=False)
    parameters = dict(model.named_parameters())
    actual = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
    gradients = torch.autograd.grad(wanted, [*parameters.values()], allow_unused=True)
    scale = max(float(each.abs().max()) for each in gradients if each is not None)
    for name, first, second in zip(parameters, actual, gradients, strict=True):
        assert (first is None) == (second is None), name
        if first is not None and second is not None:
            torch.testing.assert_close(first, second, rtol=0, atol=3e-5 * scale, msg=name)


@pytest.mark.parametrize("norm", ["linf", "sign", "l2"])
@pytest.mark.parametrize("scale", ["absolute", "relative"])
@pytest.mark.parametrize("ascents", [2, 3])
def test_several_ascents_equal_the_formula(norm: str, scale: str, ascents: int) -> None:
    model, batch = BERT.model(), BERT.batch()
    adversary = AdversarialEmbedding(model, STEP, 0.5, norm=norm, scale=scale, ascents=ascents)
    loss = adversary(**batch).loss
    expected = ascent_objective(
        model, batch, model.get_submodule(BERT.embedding), step_size=STEP, norm=norm, relative=scale == "relative",
        ascents=ascents,
    )  # fmt: skip
    assert_objective(adversary, loss, expected, model)
    if norm != "sign":
        lengths = expected.perturbation.norm(dim=-1) if norm == "l2" else expected.perturbation.abs().amax(-1)
        if scale == "absolute":
            assert lengths.max() <= STEP * (1 + 1e-6)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("ascents", [1, 2])
@pytest.mark.parametrize("direction", ["task", "consistency"])
def test_the_ascent_begins_beside_the_embeddings(name: str, ascents: int, direction: str) -> None:
    architecture = ARCHITECTURES[name]
    model, batch = architecture.model(), architecture.batch()
    module = model.get_submodule(architecture.embedding)
    both_signs = direction == "consistency"
    start = AdversaryDraws(0).start_noise(embeddings_of(model, module, batch), 0.5, both_signs=both_signs)
    adversary = AdversarialEmbedding(model, STEP, 0.5, start_noise=0.5, ascents=ascents, direction=direction)
    loss = adversary(**batch).loss
    expected = ascent_objective(model, batch, module, step_size=STEP, ascents=ascents, start=start, direction=direction)
    assert_objective(adversary, loss, expected, model)


@pytest.mark.parametrize("norm", ["linf", "sign", "l2"])
@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_a_direction_of_noise_equals_the_formula_and_costs_no_gradient(norm: str, scale: str) -> None:
    model, batch = BERT.model(), BERT.batch()
    module = model.get_submodule(BERT.embedding)
    noise = AdversaryDraws(0).noise(embeddings_of(model, module, batch))
    passes = passes_of(model)
    adversary = AdversarialEmbedding(model, STEP, 0.5, norm=norm, scale=scale, direction="noise")
    loss = adversary(**batch).loss
    assert len(passes) == 2
    expected = ascent_objective(
        model, batch, module, step_size=STEP, norm=norm, relative=scale == "relative", direction="noise", noise=noise
    )
    assert_objective(adversary, loss, expected, model)


@pytest.mark.parametrize("direction", ["task", "consistency", "noise"])
@pytest.mark.parametrize("share", [0.1, 0.7])
def test_a_share_of_the_rows_equals_the_formula_and_only_they_run_again(share: float, direction: str) -> None:
    model, batch = BERT.model(), BERT.batch()
    module = model.get_submodule(BERT.embedding)
    draws = AdversaryDraws(0)
    rows = draws.rows(len(batch["labels"]), share).tolist()
    assert 0 < len(rows) < len(batch["labels"])
    cut = embeddings_of(model, module, batch)[rows]
    passes = passes_of(model)
    start_noise = 0.5 if direction == "consistency" else 0.0
    adversary = AdversarialEmbedding(model, STEP, 0.5, share=share, direction=direction, start_noise=start_noise)
    loss = adversary(**batch).loss
    assert passes == [3, *[len(rows)] * (len(passes) - 1)]
    start = draws.start_noise(cut, 0.5, both_signs=True) if start_noise else None
    expected = ascent_objective(
        model, batch, module, step_size=STEP, direction=direction, rows=rows, start=start, noise=draws.noise(cut)
    )
    assert_objective(adversary, loss, expected, model)


@pytest.mark.parametrize("name", ["gpt2_language_model", "xlnet", "t5_classification", "bart"])
def test_a_share_cuts_whatever_has_a_row_per_sample(name: str) -> None:
    """The whole as one share is the same as no share, for tokens, encoder-decoders and embeddings with tokens first."""
    architecture = ARCHITECTURES[name]
    model, batch = architecture.model(), architecture.batch()
    samples = len(batch["labels"])
    alone = []
    for row in range(samples):
        adversary = AdversarialEmbedding(model, STEP, 0.5)
        adversary(**{key: values[row : row + 1] for key, values in batch.items()})
        alone.append(adversary.last_losses)
    adversary = AdversarialEmbedding(model, STEP, 0.5, share=1 / samples)
    for call in range(4):
        (row,) = AdversaryDraws(call).rows(samples, adversary.share).tolist()
        adversary(**batch).loss.backward()
        for key in ("adversarial", "consistency"):
            torch.testing.assert_close(
                samples * adversary.last_losses[key], alone[row][key], rtol=1e-3, atol=1e-5, msg=f"{key} of call {call}"
            )


def test_a_loss_divided_by_a_number_of_items_is_a_sum_over_the_share() -> None:
    model, batch = PlainClassifier(), BERT.batch()
    rows = AdversaryDraws(0).rows(3, 0.4).tolist()

    def total(output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output, labels, reduction="sum") / 7

    divided = AdversarialEmbedding(model, 0.0, 0.0, share=0.4, loss_fn=TaskLoss(total, divisor=7))
    divided(**batch)
    labels = batch["labels"][rows]
    logits = model(**{key: values[rows] for key, values in batch.items() if key != "labels"})
    torch.testing.assert_close(divided.last_losses["adversarial"], total(logits, labels).detach())


@pytest.mark.parametrize("gradient", ["exact", "fast"])
def test_the_step_grows_along_the_ramp_and_there_is_no_second_pass_before(
    gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = BERT.model(), BERT.batch()
    passes = passes_of(model)
    adversary = AdversarialEmbedding(model, STEP, 0.5, ramp=(2, 6), gradient=gradient)
    backwards: list[Any] = []  # of the first pass, until the whole loss is differentiated
    original = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, **kwargs: backwards.append(0) or original(*args, **kwargs)
    )
    for call, height in enumerate((0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0)):
        assert adversary.calls == call
        assert adversary.height == height
        passes.clear()
        backwards.clear()
        loss = adversary(**batch).loss
        assert len(backwards) == (1 if height or gradient == "fast" else 0)
        still = AdversarialEmbedding(model, height * STEP, 0.5, gradient=gradient)
        if height:
            assert len(passes) == 2
            torch.testing.assert_close(loss, still(**batch).loss, rtol=0, atol=0)
            assert adversary.last_losses == still.last_losses
        else:
            assert len(passes) == 1
            assert torch.equal(loss, model(**batch).loss)
            assert [float(adversary.last_losses[name]) for name in ("adversarial", "consistency")] == [0.0, 0.0]
        torch.autograd.grad(loss, [*model.parameters()], allow_unused=True)


def test_a_ramp_of_no_length_is_a_jump() -> None:
    adversary = AdversarialEmbedding(BERT.model(), STEP, ramp=(1, 1))
    heights = []
    for _ in range(3):
        heights.append(adversary.height)
        adversary(**BERT.batch())
    assert heights == [0.0, 1.0, 1.0]


def test_only_calls_in_training_mode_that_succeed_count() -> None:
    model, batch = BERT.model(), BERT.batch()
    adversary = AdversarialEmbedding(model, STEP)
    with torch.no_grad():
        adversary(**batch)
    with pytest.raises(ValueError, match="labels"):
        adversary(**{name: values for name, values in batch.items() if name != "labels"})
    assert adversary.calls == 0
    adversary(**batch)
    assert adversary.calls == 1


RANDOM: dict[str, dict[str, Any]] = {
    "share": {"share": 0.4},
    "noise": {"direction": "noise"},
    "start": {"start_noise": 1.0},
    "consistency": {"direction": "consistency", "start_noise": 0.1, "ascents": 2},
    "ramp": {"ramp": (1, 5)},
}


@pytest.mark.parametrize("options", RANDOM.values(), ids=RANDOM)
def test_what_is_saved_is_all_that_the_next_calls_depend_on(options: dict[str, Any]) -> None:
    model, batch = BERT.model(), BERT.batch()
    torch.manual_seed(3)
    whole = AdversarialEmbedding(model, STEP, 0.5, **options)
    losses = [whole(**batch).loss.detach() for _ in range(6)]
    torch.manual_seed(4)  # no global random number takes part
    first = AdversarialEmbedding(model, STEP, 0.5, **options)
    for loss in losses[:3]:
        assert torch.equal(first(**batch).loss, loss)
    second = AdversarialEmbedding(model, STEP, 0.5, **options)
    second.load_state_dict(first.state_dict())
    assert [float(second(**batch).loss.detach()) for _ in range(3)] == [float(loss) for loss in losses[3:]]
    assert len({float(loss) for loss in losses}) > 1


@pytest.mark.parametrize("options", RANDOM.values(), ids=RANDOM)
def test_the_global_random_state_is_not_read_or_changed(options: dict[str, Any]) -> None:
    model, batch = BERT.model(), BERT.batch()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    AdversarialEmbedding(model, STEP, 0.5, **options)(**batch)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("state", [{}, {"calls": -1}, {"calls": 1.5}, {"calls": True}, None], ids=str)
def test_a_state_of_something_else_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"state_dict=.*'calls'"):
        AdversarialEmbedding(BERT.model()).load_state_dict(state)


def test_draws_are_independent_from_call_to_call_and_of_each_other() -> None:
    like = torch.empty(200, 10, 16)
    draws = {call: AdversaryDraws(call) for call in range(3)}
    drawn = [each.noise(like) for each in draws.values()]
    drawn += [each.start_noise(like, 1.0, both_signs=True) for each in draws.values()]
    correlations = torch.corrcoef(torch.stack([each.flatten() for each in drawn])).fill_diagonal_(0)
    assert correlations.abs().max() < 4 / like.numel() ** 0.5
    for each in drawn:
        assert -1 <= each.min() < -0.99
        assert 0.99 < each.max() < 1
    one_sided = draws[0].start_noise(like, 0.5, both_signs=False)
    assert one_sided.min() >= 0
    assert 0.49 < one_sided.max() < 0.5
    counts = torch.zeros(10)
    for call in range(2000):
        rows = AdversaryDraws(call).rows(10, 0.3)
        assert len(rows) == 3
        assert rows.tolist() == sorted(set(rows.tolist()))
        counts[rows] += 1
    assert (counts - 600).abs().max() < 4 * (2000 * 0.3 * 0.7) ** 0.5


@pytest.mark.parametrize(
    ("options", "named", "cure"),
    [
        ({"ramp": 3}, "ramp=3", "None or a pair"),
        ({"ramp": (5, 2)}, "ramp=(5, 2)", "begin <= end"),
        ({"ramp": (-1, 2)}, "ramp=(-1, 2)", "0 <= begin"),
        ({"ramp": (0, float("nan"))}, "ramp=(0, nan)", "pair"),
        ({"share": 0.0}, "share=0.0", "above 0, at most 1"),
        ({"share": 1.5}, "share=1.5", "above 0, at most 1"),
        ({"share": float("nan")}, "share=nan", "above 0, at most 1"),
        ({"direction": "random"}, "direction='random'", "'task', 'consistency', 'noise'"),
        ({"ascents": 0}, "ascents=0", "at least 1"),
        ({"ascents": 1.5}, "ascents=1.5", "at least 1"),
        ({"ascents": True}, "ascents=True", "at least 1"),
        ({"direction": "consistency"}, "start_noise=0.0", "such as 1e-5"),
        ({"direction": "noise", "ascents": 2}, "ascents=2", 'direction="task"'),
        ({"direction": "noise", "start_noise": 0.1}, "start_noise=0.1", 'direction="task"'),
        ({"start_noise": 0.1, "gradient": "fast"}, "start_noise=0.1", 'gradient="exact"'),
        ({"step_size": "long"}, "step_size='long'", "from 0 up"),
        ({"preset": "article"}, "preset='article'", "('paper',)"),
    ],
    ids=str,
)
def test_what_is_out_of_range_or_excludes_each_other_is_refused(options: dict[str, Any], named: str, cure: str) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(named)}.*{re.escape(cure)}"):
        AdversarialEmbedding(BERT.model(), **options)


def test_a_share_of_what_has_no_row_per_sample_is_refused() -> None:
    class Packed(nn.Module):
        """All tokens of the batch in a row, as for kernels without padding."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids.flatten()).reshape(*ids.shape, 8).mean(1))

    model = Packed()
    adversary = AdversarialEmbedding(model, share=0.5, embedding=model.table, loss_fn=F.cross_entropy)
    with pytest.raises(ValueError, match=r"share=0.5 needs embeddings with a row per sample.*\(20, 8\).*share=1.0"):
        adversary(torch.randint(50, (4, 5)), labels=torch.tensor([0, 1, 1, 0]))


def test_a_share_whose_predictions_have_no_row_per_sample_is_refused() -> None:
    model, batch = BERT.model(), BERT.batch()
    adversary = AdversarialEmbedding(model, share=0.5, logits_fn=lambda output: output.logits.repeat(2, 1))
    with pytest.raises(ValueError, match=r"share= needs predictions with a row for each of the 3 samples; 'logits_fn'"):
        adversary(**batch)


def test_every_option_is_described_in_the_docstring_with_its_default() -> None:
    said = AdversarialEmbedding.__doc__ or ""
    assert "{options}" not in said
    for name, option in ADVERSARY_OPTIONS.items():
        assert f"        {name}: " in said, name
        adversary = AdversarialEmbedding(BERT.model())
        if name != "embedding":
            assert getattr(adversary, name) == option.default


# -------------------------------------------------------------------------------------------------------------- presets


def test_the_papers_preset_is_the_papers_settings_and_what_is_given_wins() -> None:
    paper = AdversarialEmbedding(BERT.model(), preset="paper")
    assert [getattr(paper, name) for name in ("step_size", "consistency_weight", "norm", "ramp", "share")] == [
        0.1, 0.01, "linf", None, 1.0,
    ]  # fmt: skip
    own = AdversarialEmbedding(BERT.model(), 0.3, preset="paper", scale="relative")
    assert (own.step_size, own.scale, own.consistency_weight) == (0.3, "relative", 0.01)
    optimizer = RoastAdamW(BERT.model(), preset="paper")
    group = optimizer.param_groups[0]
    assert [group[name] for name in ("lr", "betas", "eps", "alpha", "beta")] == [1e-5, (0.9, 0.98), 1e-6, 0.9, 10.0]
    assert optimizer.options.refresh_every is None
    own_optimizer = RoastAdamW(BERT.model(), 1e-3, preset="paper", alpha=0.6, refresh_every="auto")
    group = own_optimizer.param_groups[0]
    assert [group[name] for name in ("lr", "alpha", "beta")] == [1e-3, 0.6, 10.0]
    assert own_optimizer.options.refresh_every == "auto"


def test_what_is_given_wins_even_where_it_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from roast_optim.presets import PAPER_ADVERSARY, PAPER_OPTIMIZER

    monkeypatch.setitem(PAPER_OPTIMIZER, "alpha", 0.5)
    monkeypatch.setitem(PAPER_ADVERSARY, "step_size", 0.7)
    default = ADVERSARY_DEFAULTS["step_size"]
    assert AdversarialEmbedding(BERT.model(), preset="paper").step_size == 0.7
    assert AdversarialEmbedding(BERT.model(), default, preset="paper").step_size == default
    assert RoastAdamW(BERT.model(), preset="paper").param_groups[0]["alpha"] == 0.5
    assert RoastAdamW(BERT.model(), preset="paper", alpha=0.9).param_groups[0]["alpha"] == 0.9


def test_a_preset_says_nothing_of_what_is_selective() -> None:
    with pytest.warns(UserWarning, match="without a word on `selective`"):
        RoastAdamW(nn.Linear(2, 2).parameters(), preset="paper")
    groups = selective_param_groups(BERT.model(), 0.01)
    assert {group["selective"] for group in RoastAdamW(groups, preset="paper").param_groups} == {True, False}


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"preset='article' must be None or one of \('paper',\)"):
        RoastAdamW(nn.Linear(2, 2).parameters(), preset="article")
