"""Gradients, keep probabilities, losses and embeddings at the ends of the range of numbers, and beyond it."""

from __future__ import annotations

import gc
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from roast_optim import AdversarialEmbedding, RoastAdamW
from roast_optim.masking import keep_mask
from tests.models import ARCHITECTURES, BATCH
from tests.oracles import philox
from tests.support.snapshot import assert_same_bits, assert_same_snapshots, snapshot

BERT = ARCHITECTURES["bert"]
NAN, INF = math.nan, math.inf

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
state_dtypes = pytest.mark.parametrize("state_dtype", [None, torch.float32], ids=str)
extremes = pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1e3), (0.0, 1e-6), (1.0, 8.0)])
gradients_of_the_adversary = pytest.mark.parametrize("gradient", ["exact", "fast"])
not_finite = pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)


def random(count: int, seed: int) -> Tensor:
    """Uniform numbers in [0, 1), float64."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ranked(dtype: torch.dtype, backend: str, count: int = 400, **options: Any) -> tuple[nn.Parameter, RoastAdamW]:
    """A parameter after one step and one refresh: its masks are active."""
    parameter = nn.Parameter(random(count, 0).to(dtype))
    optimizer = RoastAdamW([parameter], **{"lr": 1e-3, "alpha": 0.5, "beta": 3.0, "backend": backend, **options})
    parameter.grad = (0.5 + random(count, 1)).to(dtype)
    optimizer.step()
    optimizer.refresh()
    return parameter, optimizer


# --------------------------------------------------------------------------------------------------- keep probabilities


@dtypes
@extremes
def test_at_extreme_alpha_and_beta_kept_gradients_saturate_and_none_is_infinite(
    dtype: torch.dtype, alpha: float, beta: float, backend: str
) -> None:
    count, largest = 40_000, torch.finfo(dtype).max
    parameter, optimizer = ranked(dtype, backend, count, betas=(0.0, 0.9), alpha=alpha, beta=beta, weight_decay=0.0)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(count // 2)
    saturated = 0
    for step in range(2, 6):
        parameter.grad = (sign * random(count, step) * largest).to(dtype)
        optimizer.step()
        state = optimizer.state[parameter]
        codes = state["rank_code"].numpy()
        kept = philox.keep_mask(codes, alpha, beta, seed=0, parameter_id=0, draw_number=step)
        with np.errstate(over="ignore"):
            factors = philox.rescaling_factors(alpha, beta)[codes].astype(np.float64)
            wanted = np.where(kept, np.clip(parameter.grad.double().numpy() * factors, -largest, largest), 0.0)
        np.testing.assert_allclose(state["exp_avg"].double().numpy(), wanted, rtol=2 * torch.finfo(dtype).eps)
        saturated += int((state["exp_avg"].abs() == largest).sum())
        assert parameter.isfinite().all()
    assert saturated > 0


@dtypes
@state_dtypes
@extremes
def test_gradients_of_one_sign_up_to_the_largest_number_move_parameters_no_further_than_the_learning_rate(
    dtype: torch.dtype, state_dtype: torch.dtype | None, alpha: float, beta: float, backend: str
) -> None:
    """As in AdamW: gradients of both signs in turn overflow in the first moment, whose range is that of the dtype."""
    parameter, optimizer = ranked(
        dtype, backend, alpha=alpha, beta=beta, refresh_every=3, state_dtype=state_dtype, weight_decay=0.0
    )
    before = parameter.detach().clone()
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(200)
    for step in range(2, 11):
        parameter.grad = (sign * random(400, step) * torch.finfo(dtype).max).to(dtype)
        optimizer.step()
    rounding = 9 * torch.finfo(dtype).eps
    assert float((parameter - before).detach().double().abs().max()) < 9 * 4e-3 + rounding
    for name in ("importance", "exp_avg"):
        assert optimizer.state[parameter][name].isfinite().all()


# --------------------------------------------------------------------------------------------------- denormal gradients


@dtypes
@state_dtypes
def test_denormal_gradients_leave_parameters_finite_and_importance_from_zero_up(
    dtype: torch.dtype, state_dtype: torch.dtype | None, backend: str
) -> None:
    """With an eps that float16 can hold: 1e-8 is zero in it, and a second moment that underflows divides by zero."""
    limits = torch.finfo(dtype)
    parameter, optimizer = ranked(dtype, backend, refresh_every=3, state_dtype=state_dtype, eps=1e-4)
    for step in range(2, 11):
        denormal = (2 * random(400, step) - 1) * limits.smallest_normal
        denormal[::3] = 1e-2 * random(400, 100 + step)[::3]
        parameter.grad = denormal.to(dtype)
        assert ((parameter.grad != 0) & (parameter.grad.abs() < limits.smallest_normal)).any()
        optimizer.step()
        importance = optimizer.state[parameter]["importance"]
        assert parameter.isfinite().all()
        assert (importance >= 0).all()  # no NaN either
        assert optimizer.param_groups[0]["steps_since_refresh"] == 0 or (importance[::3] > 0).any()
    assert optimizer.param_groups[0]["refreshes"] == 4


def test_an_importance_that_underflows_ranks_lowest_together_with_zero(backend: str) -> None:
    parameter = nn.Parameter(torch.zeros(100))
    optimizer = RoastAdamW([parameter], backend=backend)
    gradient = torch.linspace(1e-3, 1.0, 100)
    gradient[:20], gradient[20:40], gradient[40:50] = 1e-40, -1e-30, 0.0
    parameter.grad = gradient
    optimizer.step()
    assert not optimizer.state[parameter]["importance"][:50].any()
    optimizer.refresh()
    codes = optimizer.state[parameter]["rank_code"].int()
    assert codes[:50].unique().tolist() == [256 * 25 // 100]  # the middle of the lower half, where they all lie
    assert (codes[50:] > codes[0]).all()


# ------------------------------------------------------------------------------------------------- gradients not finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_elements_without_a_finite_gradient_are_to_all_others_as_if_their_gradient_were_zero(
    dtype: torch.dtype, backend: str
) -> None:
    """Only they become non-finite, and only where kept: through refreshes, ranks and masks of all stay the same."""
    bad = random(400, 50) < 0.2
    (parameter, optimizer), (twin, other) = (ranked(dtype, backend, refresh_every=3) for _ in range(2))
    spoilt = torch.zeros(400, dtype=torch.bool)
    values = torch.tensor([NAN, INF, -INF], dtype=dtype).repeat(134)[:400]
    for step in range(2, 11):
        gradient = (random(400, step) - 0.5).to(dtype)
        twin.grad, parameter.grad = gradient.masked_fill(bad, 0), torch.where(bad, values, gradient)
        codes = optimizer.state[parameter]["rank_code"].clone()
        spoilt |= bad & keep_mask(codes, 0.5, 3.0, seed=0, draw_number=step)
        optimizer.step()
        other.step()
        assert torch.equal(~parameter.isfinite(), spoilt)
        state, expected = optimizer.state[parameter], other.state[twin]
        for name in ("importance", "rank_code"):
            assert_same_bits(state[name], expected[name], name)
        for name in ("exp_avg", "exp_avg_sq"):
            assert_same_bits(state[name][~bad], expected[name][~bad], name)
        assert_same_bits(parameter.detach()[~bad], twin.detach()[~bad])
    assert 0 < int(spoilt.sum()) <= int(bad.sum())
    assert optimizer.param_groups[0]["refreshes"] == 4


def test_before_the_first_refresh_the_same_elements_become_non_finite_as_in_adamw(backend: str) -> None:
    gradient = random(60, 0).float()
    gradient[::7], gradient[1::11], gradient[5] = NAN, INF, -INF
    parameters = [nn.Parameter(torch.ones(60)) for _ in range(2)]
    optimizers = [RoastAdamW(parameters[:1], backend=backend), torch.optim.AdamW(parameters[1:])]
    for parameter, optimizer in zip(parameters, optimizers, strict=True):
        for grad in (gradient, torch.ones(60)):
            parameter.grad = grad
            optimizer.step()
    assert torch.equal(parameters[0].isfinite(), gradient.isfinite())
    assert torch.equal(parameters[0].isfinite(), parameters[1].isfinite())


def test_a_refresh_after_gradients_that_are_all_nan_keeps_the_ranks_and_says_so(backend: str) -> None:
    parameter, optimizer = ranked(torch.float32, backend)
    before = optimizer.state[parameter]["rank_code"].clone()
    parameter.grad = torch.full((400,), NAN)
    optimizer.step()
    with pytest.warns(UserWarning, match="no accumulated importance"):
        optimizer.refresh()
    assert len(before.unique()) > 100
    assert_same_bits(optimizer.state[parameter]["rank_code"], before)
    assert optimizer.param_groups[0]["refreshes"] == 1
    assert not optimizer.state[parameter]["importance"].any()


# -------------------------------------------------------------------------------------------------------- the adversary


class Run:
    """One call of an adversary on a model whose embedding outputs are watched."""

    def __init__(self, model: nn.Module, batch: dict[str, Tensor], tokens_first: bool = False, **options: Any) -> None:
        self.model = model
        self.adversary = AdversarialEmbedding(model, **options)
        seen: list[Tensor] = []
        module = model.get_submodule(self.adversary.embedding_name)
        watcher = module.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
        self.output = self.adversary(**batch)
        watcher.remove()
        clean, moved = (output.transpose(0, 1) if tokens_first else output for output in seen)
        self.moved = moved - clean
        self.loss: Tensor = self.output.loss


def assert_only_sample_one_stops(run: Run, healthy: Run) -> None:
    """All samples but that with index 1 are perturbed as in a run in which nothing is wrong."""
    assert run.adversary.nonfinite_samples == 1
    assert healthy.adversary.nonfinite_samples == 0
    assert_same_bits(run.moved[::2], healthy.moved[::2])
    assert run.moved[::2].abs().amax((1, 2)).min() > 0.05
    assert healthy.moved[1].any()
    assert not run.loss.isfinite()  # said, and not hidden: GradScaler and the user look at it


@pytest.mark.parametrize("name", ["bert", "gpt2", "xlnet", "t5_classification"])
@gradients_of_the_adversary
@not_finite
def test_a_row_of_the_embedding_table_that_is_not_finite_stops_only_the_sample_that_holds_it(
    name: str, gradient: str, value: float
) -> None:
    architecture, batch = ARCHITECTURES[name], ARCHITECTURES[name].batch()
    batch["input_ids"][batch["input_ids"] == 7] = 8
    batch["input_ids"][1, 1] = 7
    spoilt = architecture.model()
    with torch.no_grad():
        spoilt.get_submodule(AdversarialEmbedding(spoilt, embedding="word").embedding_name).weight[7] = value
    healthy = Run(architecture.model(), batch, architecture.tokens_first, gradient=gradient)
    run = Run(spoilt, batch, architecture.tokens_first, gradient=gradient)
    run.loss.backward()
    run.moved[1] = torch.nan_to_num(run.moved[1])  # NaN - NaN
    assert_only_sample_one_stops(run, healthy)
    assert not run.moved[1].any()


@gradients_of_the_adversary
@not_finite
def test_a_loss_that_is_not_finite_for_one_sample_stops_that_sample_alone(gradient: str, value: float) -> None:
    def run(weight: float) -> Run:
        def loss_fn(output: Any, labels: Tensor) -> Tensor:
            return (F.cross_entropy(output.logits, labels, reduction="none") * torch.tensor([1.0, weight, 1.0])).mean()

        return Run(BERT.model(), BERT.batch(), gradient=gradient, loss_fn=loss_fn)

    spoilt = run(value)
    assert_only_sample_one_stops(spoilt, run(1.0))
    assert not spoilt.moved[1].any()


@gradients_of_the_adversary
@not_finite
def test_a_batch_whose_loss_is_not_finite_leaves_nothing_behind(gradient: str, value: float) -> None:
    """No perturbation, all samples counted, the next batch as by a new adversary, and in the end no hook."""
    factor = value

    def loss_fn(output: Any, labels: Tensor) -> Tensor:
        return F.cross_entropy(output.logits, labels) * factor

    model = BERT.model()
    run = Run(model, BERT.batch(), gradient=gradient, loss_fn=loss_fn)
    assert not run.moved.any()
    assert run.adversary.nonfinite_samples == BATCH
    assert not run.loss.isfinite()
    factor = 1.0
    again = run.adversary(**BERT.batch(seed=2)).loss
    assert run.adversary.nonfinite_samples == BATCH
    expected = AdversarialEmbedding(BERT.model(), gradient=gradient, loss_fn=loss_fn)(**BERT.batch(seed=2)).loss
    assert_same_bits(again.detach(), expected.detach())
    del run, again
    gc.collect()
    assert not any(module._forward_hooks for module in model.modules())


# ------------------------------------------------------------------------------------------------------------- autocast


class Scaled(nn.Module):
    """A head whose logits of the samples with index 1 are multiplied."""

    def __init__(self, head: nn.Module, factor: float) -> None:
        super().__init__()
        self.head, self.factor = head, factor

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.head(hidden)
        factors = torch.ones_like(logits)
        factors[1] = self.factor
        return logits * factors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@gradients_of_the_adversary
def test_under_autocast_an_overflowing_logit_stops_its_sample_alone_and_the_scaler_skips_the_step(
    dtype: torch.dtype, gradient: str, backend: str
) -> None:
    def run(factor: float) -> Run:
        model = BERT.model()
        with torch.no_grad():
            model.classifier.weight.mul_(10)  # logits of several units
        model.classifier = Scaled(model.classifier, factor)
        with torch.autocast("cpu", dtype):
            return Run(model, BERT.batch(), gradient=gradient)

    healthy, spoilt = run(1.0), run(torch.finfo(dtype).max)
    assert spoilt.output.logits.dtype == dtype
    assert spoilt.output.logits.isfinite().all(-1).tolist() == [True, False, True]
    assert_only_sample_one_stops(spoilt, healthy)
    assert not spoilt.moved[1].any()
    optimizer = RoastAdamW(spoilt.model.parameters(), backend=backend)
    before = snapshot(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(spoilt.loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_same_snapshots(snapshot(optimizer), before)
    assert scaler.get_scale() == 2.0
