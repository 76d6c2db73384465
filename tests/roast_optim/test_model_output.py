"""Loss and predictions are found in outputs of every kind."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

from roast_optim.model_output import TaskLoss, comparable, loss_of, predictions_of, with_loss

LOSS = torch.tensor(1.0)
A, B, HIDDEN = torch.zeros(2, 3), torch.ones(2, 4), torch.zeros(2, 5, 8)
WIDTH = 8

Named = namedtuple("Named", "loss scores")


@dataclass(frozen=True)
class Frozen:
    loss: Tensor
    logits: Tensor


class Slots:
    __slots__ = ("logits", "loss")

    def __init__(self) -> None:
        self.loss, self.logits = LOSS, A


def predictions(output: Any, model: nn.Module | None = None, has_loss: bool = True) -> dict[str, Tensor]:
    return predictions_of(output, model or nn.Identity(), None, has_loss=has_loss, width=WIDTH)


OUTPUTS: dict[str, tuple[Any, dict[str, Tensor]]] = {
    "logits and what else models return": (
        {"loss": LOSS, "logits": A, "hidden_states": (HIDDEN,), "past_key_values": object(), "features": HIDDEN},
        {"logits": A},
    ),
    "start and end": (QuestionAnsweringModelOutput(LOSS, A, B), {"start_logits": A, "end_logits": B}),
    "logits and a score": (
        {"loss": LOSS, "logits": A, "relationship_score": B},
        {"logits": A, "relationship_score": B},
    ),
    "several logits under one name": ({"loss": LOSS, "logits": (A, B)}, {"logits.0": A, "logits.1": B}),
    "routers": ({"loss": LOSS, "logits": A, "router_logits": (B,)}, {"logits": A}),
    "integers": ({"loss": LOSS, "logits": A, "top_logits": A.long()}, {"logits": A}),
    "none called so": ({"loss": LOSS, "answers": A, "last_hidden_state": HIDDEN, "z_loss": B}, {"answers": A}),
    "nothing": ({"loss": LOSS, "last_hidden_state": HIDDEN}, {}),
    "named tuple": (Named(LOSS, A), {"scores": A}),
    "frozen dataclass": (Frozen(LOSS, A), {"logits": A}),
    "object": (SimpleNamespace(loss=LOSS, my_logits=A), {"my_logits": A}),
    "slots": (Slots(), {"logits": A}),
    "mapping that cannot be changed": (MappingProxyType({"loss": LOSS, "logits": A}), {"logits": A}),
    "tuple": ((LOSS, A, B), {"output[0]": A, "output[1]": B}),
    "tuple with hidden states": ((LOSS, A, HIDDEN, (HIDDEN,)), {"output[0]": A}),
    "tuple whose loss comes last": ((A, LOSS), {"output[0]": A}),
    "tuple of a loss": ((LOSS,), {}),
    "list": ([LOSS, A], {"output[0]": A}),
}


@pytest.mark.parametrize(("output", "expected"), OUTPUTS.values(), ids=OUTPUTS.keys())
def test_all_predictions_are_found(output: Any, expected: dict[str, Tensor]) -> None:
    found = predictions(output)
    assert list(found) == list(expected)
    assert all(found[name] is value for name, value in expected.items())


@pytest.mark.parametrize(("output", "expected"), OUTPUTS.values(), ids=OUTPUTS.keys())
def test_the_loss_is_found_and_replaced_wherever_it_is(output: Any, expected: Any) -> None:
    assert loss_of(output, None, None) is LOSS
    copied = dict(output) if type(output) is dict else output
    replaced = with_loss(copied, LOSS + 1, loss_is_new=False)
    assert loss_of(replaced, None, None) == 2
    assert list(predictions(replaced)) == list(expected)
    if not isinstance(output, Mapping):
        assert type(replaced) is type(output)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (transformers.BertForQuestionAnswering, ["start_logits", "end_logits"]),
        (transformers.BertForPreTraining, ["prediction_logits", "seq_relationship_logits"]),
        (transformers.CLIPModel, ["logits_per_image", "logits_per_text"]),
        (transformers.GPT2DoubleHeadsModel, ["logits", "mc_logits"]),
        (transformers.T5ForConditionalGeneration, ["logits"]),
    ],
)
def test_what_a_tuple_of_transformers_holds_is_told_by_the_annotation(kind: Any, names: list[str]) -> None:
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    values = (LOSS, *(A for _ in names), torch.zeros(2, 5, 7))
    assert list(predictions(values, model)) == names


def test_an_annotation_that_cannot_be_read_is_left_aside() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> SomethingUnknown:  # type: ignore[name-defined]  # noqa: F821
            return x

    assert list(predictions((LOSS, A), Model())) == ["output[0]"]


@pytest.mark.parametrize(
    ("returned", "names"),
    [(A, ["logits_fn"]), ((A, B), ["logits_fn.0", "logits_fn.1"]), ({"a": A}, ["logits_fn"])],
)
def test_logits_fn_decides(returned: Any, names: list[str]) -> None:
    found = predictions_of({"loss": LOSS, "logits": B}, nn.Identity(), lambda _: returned, has_loss=True, width=WIDTH)
    assert list(found) == names


@pytest.mark.parametrize("returned", [None, A.long(), LOSS, "logits"])
def test_logits_fn_must_return_a_tensor(returned: Any) -> None:
    with pytest.raises(ValueError, match="logits_fn= returned no floating-point tensor"):
        predictions_of({"loss": LOSS}, nn.Identity(), lambda _: returned, has_loss=True, width=WIDTH)


def test_with_loss_fn_the_first_tensor_of_a_tuple_is_a_prediction() -> None:
    assert list(predictions((A, B), has_loss=False)) == ["output[0]", "output[1]"]
    assert with_loss((A, B), LOSS, loss_is_new=True) == (LOSS, A, B)


@pytest.mark.parametrize(
    ("clean", "adversarial", "message"),
    [
        ({}, {}, r"SequenceClassifierOutput, has no logits.*logits_fn=.*consistency_weight=0"),
        ({"logits": A}, {}, r"'logits' has shape \(2, 3\).*is missing.*logits_fn="),
        ({"logits": A}, {"logits": B}, r"\(2, 3\) in the clean pass and has shape \(2, 4\).*logits_fn="),
    ],
)
def test_what_cannot_be_compared_is_refused_only_if_it_is_needed(
    clean: dict[str, Tensor], adversarial: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list(comparable(clean, adversarial, SequenceClassifierOutput(), needed=True))
    assert list(comparable(clean, adversarial, SequenceClassifierOutput(), needed=False)) == []


def test_a_task_loss_is_called_like_its_function() -> None:
    assert TaskLoss(lambda output, labels: output + labels, divisor=3)(1, 2) == 3
