"""What the hook answers, and when it answers nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from roast_optim.embedding_block import find_embedding_output
from roast_optim.embedding_hook import EmbeddingHook, ForwardPass
from tests.models import PlainClassifier

IDS = torch.tensor([[1, 2, 3]])


def hooked() -> tuple[nn.Module, EmbeddingHook]:
    model = PlainClassifier()
    hook = EmbeddingHook(find_embedding_output(model, None))
    hook.attach()
    return model, hook


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_what_is_added_has_at_least_float32_and_the_answer_the_dtype_of_the_output(
    dtype: torch.dtype, expected: torch.dtype
) -> None:
    output = torch.randn(1, 2, 3).to(dtype)
    clean = ForwardPass()
    answer = clean.answer(output, "embedding")
    assert answer.dtype == dtype
    assert torch.equal(answer, output)
    assert clean.addend.dtype == expected
    (gradient,) = torch.autograd.grad(answer.sum(), clean.addend)
    assert gradient.dtype == expected


def test_a_perturbation_is_rounded_only_once_it_is_added() -> None:
    """1 + 2**-9 + 2**-9 is 1 in bfloat16 if each summand is rounded to it, and the next number if the sum is."""
    base = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    answer = ForwardPass(base, torch.full((1, 1, 1), 2.0**-8 + 2.0**-20)).answer(base, "embedding")
    assert answer.item() == 1 + 2.0**-7


def test_outside_a_pass_nothing_changes() -> None:
    model, hook = hooked()
    expected = model.embedding.weight[IDS]
    assert torch.equal(model.embedding(IDS), expected)
    with hook.running(ForwardPass(torch.zeros(1, 3, 16), torch.ones(1, 3, 16))):
        assert torch.equal(model.embedding(IDS), torch.ones(1, 3, 16))
    assert torch.equal(model.embedding(IDS), expected)


def test_a_pass_that_fails_is_over() -> None:
    model, hook = hooked()
    with pytest.raises(ZeroDivisionError), hook.running(ForwardPass(torch.zeros(1, 3, 16), torch.ones(1, 3, 16))):
        raise ZeroDivisionError
    assert torch.equal(model.embedding(IDS), model.embedding.weight[IDS])


def test_attaching_and_removing_twice_is_the_same_as_once() -> None:
    model, hook = hooked()
    hook.attach()
    assert len(model.embedding._forward_hooks) == 1
    hook.remove()
    hook.remove()
    assert not model.embedding._forward_hooks
    hook.attach()
    assert len(model.embedding._forward_hooks) == 1
