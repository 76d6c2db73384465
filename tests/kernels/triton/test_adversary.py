"""AdversarialEmbedding and symmetric_kl use the kernels where these can run, which changes nothing but rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, XLNetConfig, XLNetForSequenceClassification

from roast_optim import AdversarialEmbedding, backends, losses, perturbation, symmetric_kl
from tests.support.devices import DEVICE


def bert() -> torch.nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
        )
    )  # fmt: skip


def xlnet() -> torch.nn.Module:
    """Its embedding output is [tokens, batch, hidden]."""
    return XLNetForSequenceClassification(
        XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=32, dropout=0.0, num_labels=3)
    )


def objective_and_gradients(
    make: Callable[[], torch.nn.Module], dtype: torch.dtype, **options: object
) -> tuple[Tensor, list[Tensor], int]:
    torch.manual_seed(0)
    model = make().to(DEVICE, dtype).train()
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[0, 5:] = 0
    batch = {"input_ids": torch.randint(0, 50, (4, 7)), "attention_mask": mask, "labels": torch.tensor([0, 2, 1, 1])}
    adversary = AdversarialEmbedding(model, consistency_weight=0.5, **options)
    loss = adversary(**{name: tensor.to(DEVICE) for name, tensor in batch.items()}).loss
    loss.backward()
    gradients = [param.grad for param in model.parameters() if param.grad is not None]
    return loss.detach(), gradients, adversary.nonfinite_samples


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the modules that were given kernels."""
    found: list[str] = []
    for module in (perturbation, losses):

        def counted(*tensors: Tensor, name: str = module.__name__) -> object:
            kernels = backends.fused_kernels(*tensors)
            if kernels is not None:
                found.append(name)
            return kernels

        monkeypatch.setattr(module, "fused_kernels", counted)
    return found


@pytest.mark.parametrize("gradient", ["exact", "fast"])
@pytest.mark.parametrize("norm", ["linf", "sign", "l2"])
@pytest.mark.parametrize("make", [bert, xlnet])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_adversary_is_the_same_with_the_kernels(
    make: Callable[[], torch.nn.Module],
    norm: str,
    gradient: str,
    dtype: torch.dtype,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss, gradients, nonfinite = objective_and_gradients(make, dtype, norm=norm, gradient=gradient)
    assert calls == ["roast_optim.perturbation", "roast_optim.losses"]
    for module in (perturbation, losses):
        monkeypatch.setattr(module, "fused_kernels", lambda *tensors: None)
    expected_loss, expected_gradients, expected_nonfinite = objective_and_gradients(
        make, dtype, norm=norm, gradient=gradient
    )
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=tolerance)
    largest = max(float(expected.abs().max()) for expected in expected_gradients)
    torch.testing.assert_close(gradients, expected_gradients, rtol=tolerance, atol=tolerance * largest)
    assert nonfinite == expected_nonfinite == 0


@pytest.mark.parametrize("labels", [None, torch.tensor([[0, -100, 1], [2, 1, -100]])], ids=["all", "some"])
def test_the_divergence_is_the_same_with_the_kernels(
    labels: Tensor | None, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(2, 3, 11, generator=generator).to(DEVICE).requires_grad_() for _ in range(2)]
    labels = None if labels is None else labels.to(DEVICE)
    found = symmetric_kl(*sides, labels)
    gradients = torch.autograd.grad(found, sides)
    assert calls == ["roast_optim.losses"]
    monkeypatch.setattr(losses, "fused_kernels", lambda *tensors: None)
    expected = symmetric_kl(*sides, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, sides), rtol=1e-4, atol=1e-6)


def test_float64_stays_with_torch(calls: list[str]) -> None:
    p, q = torch.randn(2, 3, 5, dtype=torch.float64, device=DEVICE)
    assert symmetric_kl(p, q).dtype == torch.float64
    assert calls == []


def test_unequal_shapes_are_refused_before_a_kernel_runs(calls: list[str]) -> None:
    with pytest.raises(ValueError, match="must be the same"):
        symmetric_kl(torch.zeros(2, 3, device=DEVICE), torch.zeros(2, 4, device=DEVICE))
    assert calls == []
