"""The embedding output is found by structure."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from roast_optim.adversarial import AdversarialEmbedding
from roast_optim.embedding_block import find_embedding_output
from tests.models import ARCHITECTURES, HIDDEN, VOCABULARY, Architecture, PlainClassifier

architectures = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())


@architectures
def test_embedding_block_of_every_architecture(architecture: Architecture) -> None:
    model = architecture.model()
    found = find_embedding_output(model, None)
    assert found.name == architecture.embedding
    assert found.module is model.get_submodule(architecture.embedding)
    assert found.tokens_first == architecture.tokens_first
    assert found.is_table == isinstance(found.module, nn.Embedding)


@architectures
def test_word_embedding_table_of_every_architecture(architecture: Architecture) -> None:
    model = architecture.model()
    found = find_embedding_output(model, "word")
    assert found.is_table
    assert found.module.weight.shape[0] == VOCABULARY
    assert found.tokens_first == architecture.tokens_first
    assert "decoder" not in found.name


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5_classification"])
def test_looking_for_it_changes_neither_modes_nor_random_state_nor_gradients(name: str) -> None:
    model = ARCHITECTURES[name].model(dropout=0.5)
    list(model.modules())[-1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    find_embedding_output(model, None)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Decoder(nn.Module):
    """GPT as it is often written: an nn.ModuleDict of tables and blocks, and no library."""

    def __init__(self, steps: nn.Module) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(HIDDEN, 2, 2 * HIDDEN, batch_first=True)
        self.parts = nn.ModuleDict(
            {
                "words": nn.Embedding(VOCABULARY, HIDDEN),
                "positions": nn.Embedding(32, HIDDEN),
                "final": nn.LayerNorm(HIDDEN),
                "steps": steps,
                "blocks": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).layers,
            }
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states, [batch, tokens, hidden]."""
        positions = torch.arange(tokens.shape[1])
        hidden = self.parts["steps"](self.parts["words"](tokens) + self.parts["positions"](positions))
        for block in self.parts["blocks"]:
            hidden = block(hidden)
        normalised: Tensor = self.parts["final"](hidden)
        return normalised


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (nn.Dropout(0.1), "parts.steps"),
        (nn.LayerNorm(HIDDEN), "parts.steps"),
        (nn.Sequential(nn.LayerNorm(HIDDEN), nn.Dropout(0.1)), "parts.steps.0"),
    ],
    ids=["dropout", "normalisation", "both"],
)
def test_what_is_handed_to_the_first_block_of_a_plain_transformer(steps: nn.Module, expected: str) -> None:
    assert find_embedding_output(Decoder(steps), None).name == expected


def test_the_table_stands_in_where_no_module_returns_what_the_first_block_is_given() -> None:
    class Sum(Decoder):
        def forward(self, tokens: Tensor) -> Tensor:
            return self.parts["blocks"][0](self.parts["words"](tokens) + 1.0)

    with pytest.warns(UserWarning, match=r"'parts.words', the word-embedding table.*no module returns.*embedding="):
        assert find_embedding_output(Sum(nn.Identity()), None).name == "parts.words"


def test_a_module_that_runs_twice_before_the_first_block_is_passed_over() -> None:
    class Twice(Decoder):
        def forward(self, tokens: Tensor) -> Tensor:
            steps = self.parts["steps"]
            return self.parts["blocks"][0](steps(steps(self.parts["words"](tokens)) + 1.0))

    with pytest.warns(UserWarning, match="could not be found"):
        assert find_embedding_output(Twice(nn.Dropout(0.1)), None).name == "parts.words"


def test_a_model_that_draws_even_in_evaluation_mode_does_not_move_the_random_state() -> None:
    class Noisy(Decoder):
        def forward(self, tokens: Tensor) -> Tensor:
            torch.rand(3)
            return super().forward(tokens)

    model = Noisy(nn.Dropout(0.1))
    state = torch.get_rng_state()
    assert find_embedding_output(model, None).name == "parts.steps"
    assert torch.equal(state, torch.get_rng_state())


def test_the_table_stands_in_where_two_tokens_cannot_be_sent_through_the_model() -> None:
    class TwoInputs(Decoder):
        def forward(self, tokens: Tensor, image: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(tokens) + image

    model = TwoInputs(nn.Dropout(0.1))
    with pytest.warns(UserWarning, match=r"could not be found \(TypeError: .*'image'"):
        found = find_embedding_output(model, None)
    assert found.name == "parts.words"
    assert not found.tokens_first
    assert model.training


def test_without_blocks_it_is_the_first_table() -> None:
    assert find_embedding_output(PlainClassifier(), None).name == "embedding"


def test_an_embedding_module_of_several_parts_is_taken_whole() -> None:
    class Model(Decoder):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            del self.parts["positions"]
            self.embed = nn.Sequential(self.parts.pop("words"), nn.LayerNorm(HIDDEN))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.parts["blocks"][0](self.embed(tokens))

    assert find_embedding_output(Model(), None).name == "embed"


def test_a_model_without_embeddings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model=Linear has no embeddings.*pass embedding="):
        find_embedding_output(nn.Linear(2, 2), None)


def test_a_module_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"embedding=Embedding\(\.\.\.\) is not a module of the model"):
        find_embedding_output(PlainClassifier(), nn.Embedding(2, 2))


def test_a_model_without_embeddings_may_say_what_to_perturb() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert find_embedding_output(model, model[0]).name == "0"


@pytest.mark.parametrize("error", [NotImplementedError, AttributeError, None])
def test_what_stands_in_for_a_table_that_is_not_told_is_said(error: type[Exception] | None) -> None:
    class Hidden(PlainClassifier):
        def get_input_embeddings(self) -> nn.Module:
            if error is not None:
                raise error
            return nn.Embedding(2, 2)

    with pytest.warns(UserWarning, match=r"get_input_embeddings\(\) of model=Hidden.*'embedding'.*pass embedding="):
        assert find_embedding_output(Hidden(), None).name == "embedding"


def test_an_encoder_decoder_without_an_encoder_of_its_own_is_searched_whole() -> None:
    model = PlainClassifier()
    model.config = SimpleNamespace(is_encoder_decoder=True)
    assert find_embedding_output(model, None).name == "embedding"


def test_the_whole_model_may_be_what_is_perturbed() -> None:
    model = nn.Linear(HIDDEN, HIDDEN)
    found = find_embedding_output(model, model)
    assert (found.name, found.surroundings, found.table) == ("", (), None)
    adversary = AdversarialEmbedding(
        model, embedding=model, loss_fn=lambda output, labels: (output - labels).abs().mean()
    )
    adversary(torch.randn(2, 3, HIDDEN), labels=torch.zeros(2, 3, HIDDEN)).loss.backward()
