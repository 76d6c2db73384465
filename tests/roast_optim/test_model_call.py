"""Every pass gets inputs of its own."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from roast_optim.model_call import ModelCall, argument_of, predicts_next_label
from tests.models import ARCHITECTURES, PlainClassifier

OptimizerAndOracle = namedtuple("OptimizerAndOracle", "first second")


@dataclass
class Batch:
    """A container of a caller's own."""

    ids: Tensor
    name: str = "batch"


class Graph(SimpleNamespace):
    """As the batches of graph libraries, it copies itself."""

    def clone(self) -> Graph:
        """A copy."""
        return Graph(ids=self.ids.clone(), cloned=True)


def copy_of(value: Any) -> Any:
    return ModelCall(PlainClassifier(), (value,), {}).for_one_pass().args[0]


CONTAINERS: dict[str, tuple[Any, Any]] = {
    "tensor": (lambda ids: ids, lambda value: value),
    "dictionary": (lambda ids: {"ids": ids}, lambda value: value["ids"]),
    "ordered dictionary": (lambda ids: OrderedDict(ids=ids), lambda value: value["ids"]),
    "user dictionary": (lambda ids: UserDict(ids=ids), lambda value: value["ids"]),
    "batch of a tokenizer": (
        lambda ids: transformers.BatchEncoding({"ids": ids}),
        lambda value: value["ids"],
    ),
    "list": (lambda ids: [ids], lambda value: value[0]),
    "tuple": (lambda ids: (ids, 1), lambda value: value[0]),
    "named tuple": (lambda ids: OptimizerAndOracle(ids, 1), lambda value: value.first),
    "nested": (lambda ids: {"a": [({"b": ids},)]}, lambda value: value["a"][0][0]["b"]),
    "dataclass": (Batch, lambda value: value.ids),
    "object": (lambda ids: SimpleNamespace(inner=SimpleNamespace(ids=ids)), lambda value: value.inner.ids),
    "object with clone": (lambda ids: Graph(ids=ids), lambda value: value.ids),
}


@pytest.mark.parametrize(("wrap", "get"), CONTAINERS.values(), ids=CONTAINERS.keys())
def test_a_change_in_place_reaches_no_other_pass(wrap: Any, get: Any) -> None:
    ids = torch.arange(3)
    given = wrap(ids)
    copied = copy_of(given)
    assert type(copied) is type(given)
    assert torch.equal(get(copied), ids)
    get(copied).zero_()
    assert ids.tolist() == [0, 1, 2]
    assert torch.equal(get(copy_of(given)), ids)


def test_what_is_taken_out_of_a_container_is_still_in_the_next() -> None:
    given = {"ids": torch.arange(3), "names": ["a", "b"]}
    copied = copy_of(given)
    copied.pop("ids")
    copied["names"].clear()
    assert list(given) == ["ids", "names"]
    assert given["names"] == ["a", "b"]


@pytest.mark.parametrize("length", [0, 3])
@pytest.mark.parametrize("config", [None, transformers.LlamaConfig(num_hidden_layers=2)], ids=["lazy", "of a config"])
def test_a_cache_that_grows_is_as_it_was_in_the_next_pass(length: int, config: Any) -> None:
    cache = transformers.DynamicCache(config=config)
    if length:
        cache.update(torch.ones(1, 2, length, 4), torch.ones(1, 2, length, 4), 0)
    copied = copy_of(cache)
    copied.update(torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4), 0)
    assert copied.get_seq_length() == length + 5
    assert cache.get_seq_length() == length


def test_a_packed_sequence_stays_one() -> None:
    packed = pack_padded_sequence(torch.randn(2, 3, 4), torch.tensor([3, 2]), batch_first=True)
    copied = copy_of(packed)
    assert isinstance(copied, PackedSequence)
    copied.data.zero_()
    assert packed.data.any()


def test_a_tensor_that_is_given_twice_stays_one() -> None:
    ids = torch.arange(3)
    call = ModelCall(PlainClassifier(), (ids,), {"labels": ids}).for_one_pass()
    assert call.args[0] is call.kwargs["labels"] is call.labels
    assert call.labels is not ids


@pytest.mark.parametrize(
    "value", ["text", 3, None, nn.Linear(2, 2), print, torch.float32, SimpleNamespace(a=1)], ids=str
)
def test_what_holds_no_tensor_is_not_copied(value: Any) -> None:
    assert copy_of(value) is value


def test_a_container_that_holds_itself_is_copied() -> None:
    given: dict[str, Any] = {"ids": torch.arange(3)}
    given["self"] = given
    copied = copy_of(given)
    assert copied["self"] is copied
    assert copied["ids"] is not given["ids"]


def test_gradients_go_through_the_copy() -> None:
    embeds = torch.randn(3, requires_grad=True)
    copy_of(embeds).sum().backward()
    assert torch.equal(embeds.grad, torch.ones(3))  # type: ignore[arg-type]


def test_inputs_are_cut_off_wherever_they_are() -> None:
    embeds = torch.randn(3, requires_grad=True) * 2
    call, inputs, leaves = ModelCall(PlainClassifier(), ({"a": [embeds]}, torch.arange(3)), {}).on_leaves()
    assert [value is embeds for value in inputs] == [True]
    assert call.args[0]["a"][0] is leaves[0]
    assert leaves[0].is_leaf
    assert leaves[0].requires_grad


def test_arguments_are_found_by_keyword_and_by_position() -> None:
    model = PlainClassifier()
    assert argument_of(model, (1, 2), {}, "attention_mask") == 2
    assert argument_of(model, (1,), {"attention_mask": 3}, "attention_mask") == 3
    assert argument_of(model, (1,), {}, "attention_mask") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bert", False), ("gpt2", False), ("gpt2_language_model", True), ("t5_sequence_to_sequence", False)],
)
def test_decoder_only_language_models_predict_the_next_label(name: str, expected: bool) -> None:
    assert predicts_next_label(ARCHITECTURES[name].model()) == expected
    assert not predicts_next_label(PlainClassifier())
