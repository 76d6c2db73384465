"""Which parameters are selective, which are decayed, and in which groups they end up."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from roast_optim.param_groups import always_updated_param_groups, selective_param_groups, transformer_blocks
from tests.models import ARCHITECTURES, HIDDEN, Architecture, PlainClassifier

# Names of what lies in a block. The package knows none of them.
BLOCKS = {
    "bert": r"encoder\.layer\.\d",
    "roberta": r"encoder\.layer\.\d",
    "distilbert": r"transformer\.layer\.\d",
    "albert": r"albert_layer_groups",
    "deberta_v2": r"encoder\.layer\.\d",
    "electra": r"encoder\.layer\.\d",
    "xlnet": r"transformer\.layer\.\d",
    "modernbert": r"model\.layers\.\d",
    "modernbert_masked_language_model": r"model\.layers\.\d",
    "gpt2": r"transformer\.h\.\d",
    "gpt2_language_model": r"transformer\.h\.\d",
    "llama": r"model\.layers\.\d",
    "t5_classification": r"(encoder|decoder)\.block\.\d",
    "t5_sequence_to_sequence": r"(encoder|decoder)\.block\.\d",
    "bart": r"(encoder|decoder)\.layers\.\d",
    "bart_sequence_to_sequence": r"(encoder|decoder)\.layers\.\d",
}

named_architectures = pytest.mark.parametrize(("name", "architecture"), ARCHITECTURES.items(), ids=ARCHITECTURES.keys())


def names_in(model: nn.Module, groups: list[dict[str, Any]], **wanted: Any) -> set[str]:
    """Names of the parameters in the groups that have those values."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]
        for group in groups
        if all(group[key] == value for key, value in wanted.items())
        for parameter in group["params"]
    }


@named_architectures
def test_blocks_are_selective_and_nothing_else(name: str, architecture: Architecture) -> None:
    model = architecture.model()
    groups = selective_param_groups(model, weight_decay=0.01)
    selective = names_in(model, groups, selective=True)
    assert selective == {key for key, _ in model.named_parameters() if re.search(BLOCKS[name], key)}
    always = names_in(model, groups, selective=False)
    assert not selective & always
    assert any("emb" in key or "wte" in key or "shared" in key for key in always)


@named_architectures
def test_every_parameter_is_in_one_group_and_the_groups_suit_an_optimizer(
    name: str, architecture: Architecture
) -> None:
    model = architecture.model()
    groups = selective_param_groups(model, weight_decay=0.01)
    parameters = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(parameters) == sorted(id(parameter) for parameter in model.parameters())
    assert all(set(group) == {"params", "weight_decay", "selective"} for group in groups)
    torch.optim.AdamW(groups)


@named_architectures
def test_biases_and_normalisation_weights_are_not_decayed(name: str, architecture: Architecture) -> None:
    model = architecture.model()
    groups = selective_param_groups(model, weight_decay=0.01)
    undecayed = names_in(model, groups, weight_decay=0.0)
    # XLNet's r_w_bias and its like are biases of two dimensions; T5 has a table of position biases, a weight.
    expected = {key for key, parameter in model.named_parameters() if parameter.ndim == 1 or re.search(r"bias$", key)}
    assert undecayed == expected
    assert names_in(model, groups, weight_decay=0.01) == set(dict(model.named_parameters())) - expected
    assert names_in(model, groups, weight_decay=0.0, selective=True)


def test_without_weight_decay_groups_differ_in_selective_alone() -> None:
    groups = selective_param_groups(ARCHITECTURES["bert"].model(), weight_decay=0.0)
    assert {(group["weight_decay"], group["selective"]) for group in groups} == {(0.0, True), (0.0, False)}


def test_parameters_keep_the_order_of_the_model() -> None:
    model = ARCHITECTURES["bert"].model()
    order = {id(parameter): index for index, parameter in enumerate(model.parameters())}
    for group in selective_param_groups(model, weight_decay=0.01):
        indices = [order[id(parameter)] for parameter in group["params"]]
        assert indices == sorted(indices)


@pytest.mark.parametrize(
    "always_update",
    [r"layer\.1\.", [r"layer\.1\."], (r"layer\.1\.attention", r"layer\.1\.(inter|out)")],
    ids=["one", "list", "several"],
)
def test_always_update_takes_parameters_out_of_the_selection(always_update: Any) -> None:
    model = ARCHITECTURES["bert"].model()
    selective = names_in(model, selective_param_groups(model, 0.01, always_update), selective=True)
    assert selective == {name for name, _ in model.named_parameters() if "layer.0." in name}


def test_always_update_keeps_the_weight_decay() -> None:
    model = ARCHITECTURES["bert"].model()
    groups = selective_param_groups(model, 0.01, "query")
    assert "bert.encoder.layer.0.attention.self.query.weight" in names_in(model, groups, weight_decay=0.01)
    assert "bert.encoder.layer.0.attention.self.query.bias" in names_in(model, groups, weight_decay=0.0)


def test_frozen_parameters_are_left_out() -> None:
    model = ARCHITECTURES["bert"].model()
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)
    groups = selective_param_groups(model, 0.01)
    assert names_in(model, groups) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_parameter_used_inside_and_outside_the_blocks_is_always_updated() -> None:
    model = ARCHITECTURES["bert"].model()
    shared = model.bert.encoder.layer[0].attention.self.query.weight
    model.classifier.extra = shared
    groups = selective_param_groups(model, 0.01)
    found = [group["selective"] for group in groups for parameter in group["params"] if parameter is shared]
    assert found == [False]


class Block(nn.Module):
    """Two matrices, and whatever else."""

    def __init__(self, size: int = HIDDEN, **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(size, size), nn.Linear(size, size)
        for name, part in parts.items():
            self.add_module(name, part)


class OtherBlock(Block):
    """A block of another class."""


class Head(nn.Module):
    """Small, of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.output = nn.Linear(HIDDEN, 4), nn.Linear(4, 2)


def model_of(**parts: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, part in parts.items():
        model.add_module(name, part)
    return model


def paths(model: nn.Module) -> list[list[str]]:
    names = {module: name for name, module in model.named_modules()}
    return [[names[block] for block in stack] for stack in transformer_blocks(model)]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (model_of(layers=nn.ModuleList([Block(), Block()])), [["layers.0", "layers.1"]]),
        (model_of(layers=nn.ModuleList([Block()])), [["layers.0"]]),
        (nn.Sequential(Block(), Block()), [["0", "1"]]),
        (nn.Sequential(nn.Embedding(5, HIDDEN), nn.Sequential(Block(), Block())), [["1.0", "1.1"]]),
        (
            model_of(a=nn.ModuleList([Block(), OtherBlock(), Block(), OtherBlock()])),
            [["a.0", "a.1", "a.2", "a.3"]],
        ),
        (
            model_of(encoder=nn.ModuleList([Block(), Block()]), decoder=nn.ModuleList([OtherBlock()])),
            [["encoder.0", "encoder.1"], ["decoder.0"]],
        ),
        (
            model_of(small=nn.ModuleList([Block(2)]), large=nn.ModuleList([Block(64)])),
            [["small.0"], ["large.0"]],
        ),
        (
            model_of(heads=nn.ModuleList([Head(), Head()]), layers=nn.ModuleList([Block(), Block()])),
            [["layers.0", "layers.1"]],
        ),
        (
            model_of(layers=nn.ModuleList([Block(experts=nn.ModuleList([Block(), Block()]))])),
            [["layers.0"]],
        ),
        (
            model_of(
                towers=nn.ModuleList(
                    [model_of(words=nn.Embedding(5, 2), layers=nn.ModuleList([Block()])) for _ in range(2)]
                )
            ),
            [["towers.0.layers.0"], ["towers.1.layers.0"]],
        ),
    ],
    ids=[
        "list",
        "list of one",
        "sequential",
        "nested sequential",
        "two kinds of blocks in turn",
        "encoder and decoder",
        "one class in two sizes",
        "heads beside blocks",
        "experts inside blocks",
        "two whole models",
    ],
)
def test_blocks_are_found_by_structure(model: nn.Module, expected: list[list[str]]) -> None:
    assert paths(model) == expected


@pytest.mark.parametrize(
    "model",
    [
        PlainClassifier(),
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(Block()),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)),
        model_of(tables=nn.ModuleList([nn.Embedding(2, 2), nn.Embedding(2, 2)])),
        model_of(parts=nn.ModuleList([Block(), Head()])),
    ],
    ids=["plain", "linear", "linears", "sequence of one", "perceptron", "tables", "different parts"],
)
def test_a_model_without_blocks_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"model={type(model).__name__} has no transformer blocks.*yourself"):
        selective_param_groups(model, weight_decay=0.01)


def test_normalisation_layers_of_more_dimensions_and_of_other_libraries_are_not_decayed() -> None:
    class SpecialNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 3))

    model = model_of(
        layers=nn.ModuleList([Block(norm=nn.LayerNorm((2, 3))), Block(norm=SpecialNorm())]),
    )
    undecayed = names_in(model, selective_param_groups(model, 0.01), weight_decay=0.0)
    assert {"layers.0.norm.weight", "layers.1.norm.scale"} <= undecayed


@pytest.mark.parametrize("weight_decay", [-0.1, float("nan"), float("inf")])
def test_a_weight_decay_out_of_range_is_refused(weight_decay: float) -> None:
    with pytest.raises(ValueError, match=f"weight_decay={weight_decay}.*from 0 up"):
        selective_param_groups(ARCHITECTURES["bert"].model(), weight_decay)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"always_update=\['layer\\\\\.7'\] matches no parameter.*named_parameters"):
        selective_param_groups(ARCHITECTURES["bert"].model(), 0.01, ["classifier", r"layer\.7"])


@pytest.mark.parametrize("pattern", ["(", 3], ids=str)
def test_a_pattern_that_is_none_is_refused(pattern: Any) -> None:
    with pytest.raises(ValueError, match=r"always_update=.* is not a regular expression"):
        selective_param_groups(ARCHITECTURES["bert"].model(), 0.01, [pattern])


@pytest.mark.parametrize("reason", ["frozen", "always updated"])
def test_blocks_without_anything_selective_are_refused(reason: str) -> None:
    model = ARCHITECTURES["bert"].model()
    if reason == "frozen":
        model.bert.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no trainable parameter.*selective.*always_update"):
        selective_param_groups(model, 0.01, None if reason == "frozen" else r"encoder\.layer")


def test_names_of_wrappers_do_not_matter() -> None:
    model = ARCHITECTURES["bert"].model()
    wrapped = model_of(module=model)
    assert {id(p) for g in selective_param_groups(wrapped, 0.01) if g["selective"] for p in g["params"]} == {
        id(p) for g in selective_param_groups(model, 0.01) if g["selective"] for p in g["params"]
    }


def test_a_model_with_heads_for_pretraining() -> None:
    """The transform of the language-model head looks like a part of a block, but is not in one."""
    model = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=40, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    )
    selective = names_in(model, selective_param_groups(model, 0.01), selective=True)
    assert all("encoder.layer" in name for name in selective)
    assert selective


@pytest.mark.parametrize("make", [PlainClassifier, ARCHITECTURES["bert"].model], ids=["without blocks", "with blocks"])
def test_without_selection_any_model_has_groups(make: Any) -> None:
    model = make()
    next(model.parameters()).requires_grad_(False)
    groups = always_updated_param_groups(model, 0.01)
    assert [(group["weight_decay"], group["selective"]) for group in groups] == [(0.01, False), (0.0, False)]
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, others = ({names[parameter] for parameter in group["params"]} for group in groups)
    assert decayed | others == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not decayed & others
    assert all("bias" in name or "Norm" in name for name in others)


def test_without_selection_there_is_no_empty_group() -> None:
    model = nn.Linear(2, 2, bias=False)
    assert [len(group["params"]) for group in always_updated_param_groups(model, 0.01)] == [1]
