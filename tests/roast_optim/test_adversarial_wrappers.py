"""AdversarialEmbedding with what else wraps or reruns a model: checkpointing, compilation, scaling, processes."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from roast_optim.adversarial import AdversarialEmbedding
from tests.models import ARCHITECTURES, PlainClassifier

BERT = ARCHITECTURES["bert"]

both_gradients = pytest.mark.parametrize("gradient", ["exact", "fast"])


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def expected_gradients(gradient: str, calls: int = 1) -> list[Tensor]:
    """Those of a model that nothing wraps."""
    model = BERT.model()
    adversary = AdversarialEmbedding(model, gradient=gradient)
    for call in range(calls):
        adversary(**BERT.batch(seed=call + 1)).loss.backward()
    return gradients(model)


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-6) -> None:
    assert len(actual) == len(expected) > 0
    scale = max(float(gradient.abs().max()) for gradient in expected)
    for first, second in zip(actual, expected, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=tolerance * scale)


class CheckpointedClassifier(nn.Module):
    """A plain classifier whose every part, the embedding included, is recomputed in the backward pass."""

    def __init__(self, checkpointed: bool, dropout: float) -> None:
        super().__init__()
        self.classifier = PlainClassifier(dropout)
        self.checkpointed = checkpointed

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits, [batch, classes]."""
        if not self.checkpointed:
            return self.classifier(input_ids, attention_mask)
        logits: Tensor = checkpoint(self.classifier, input_ids, attention_mask, use_reentrant=False)
        return logits


@both_gradients
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputing_the_embedding_gives_the_value_of_the_pass_that_is_recomputed(
    gradient: str, dropout: float
) -> None:
    """Two calls and one backward pass afterwards, when the hook has to tell four passes apart."""
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        model = CheckpointedClassifier(checkpointed, dropout)
        adversary = AdversarialEmbedding(
            model, step_size=1.0, consistency_weight=1.0, gradient=gradient, loss_fn=F.cross_entropy
        )
        loss = sum(adversary(**BERT.batch(seed=seed)).loss for seed in (1, 2))
        adversary.model(BERT.batch()["input_ids"], BERT.batch()["attention_mask"])
        loss.backward()
        results.append((loss.detach(), gradients(model)))
    (loss, expected), (checkpointed_loss, actual) = results
    assert torch.equal(checkpointed_loss, loss)
    assert_close(actual, expected)


def test_recomputing_works_when_the_adversary_is_gone_and_nothing_outlives_the_graph() -> None:
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        model = CheckpointedClassifier(checkpointed, 0.0)
        loss = AdversarialEmbedding(model, step_size=1.0, loss_fn=F.cross_entropy)(**BERT.batch()).loss
        gc.collect()
        loss.backward()
        results.append(gradients(model))
        del loss
        gc.collect()
        assert not model.classifier.embedding._forward_hooks
    assert_close(results[1], results[0])


@both_gradients
def test_checkpointed_blocks(gradient: str) -> None:
    model = BERT.model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    AdversarialEmbedding(model, gradient=gradient)(**BERT.batch()).loss.backward()
    assert_close(gradients(model), expected_gradients(gradient))


@both_gradients
def test_reentrant_checkpointing_is_refused(gradient: str) -> None:
    model = BERT.model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(RuntimeError, match=r"reentrant.*use_reentrant=False"):
        AdversarialEmbedding(model, gradient=gradient)(**BERT.batch())


@both_gradients
def test_gradients_accumulate(gradient: str) -> None:
    single = [torch.zeros_like(value) for value in expected_gradients(gradient)]
    for seed in (1, 2):
        model = BERT.model()
        AdversarialEmbedding(model, gradient=gradient)(**BERT.batch(seed=seed)).loss.backward()
        single = [total + value for total, value in zip(single, gradients(model), strict=True)]
    assert_close(expected_gradients(gradient, calls=2), single)


@both_gradients
def test_a_scaled_loss_has_scaled_gradients(gradient: str) -> None:
    """As under a GradScaler, which scales the loss and divides the gradients afterwards."""
    model = BERT.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(AdversarialEmbedding(model, gradient=gradient)(**BERT.batch()).loss).backward()
    scaler.unscale_(optimizer)
    assert_close(gradients(model), expected_gradients(gradient))


def test_fast_leaves_unused_parameters_without_gradient_and_frozen_ones_alone() -> None:
    model = BERT.model()
    model.unused = nn.Parameter(torch.ones(3))
    model.bert.embeddings.requires_grad_(False)
    AdversarialEmbedding(model, gradient="fast")(**BERT.batch()).loss.backward()
    assert model.unused.grad is None
    assert all(parameter.grad is None for parameter in model.bert.embeddings.parameters())
    assert model.classifier.weight.grad is not None


def test_fast_detaches_what_is_returned_beside_the_loss() -> None:
    output = AdversarialEmbedding(BERT.model(), gradient="fast")(**BERT.batch(), output_hidden_states=True)
    assert not output.logits.requires_grad
    assert not any(state.requires_grad for state in output.hidden_states)
    assert output.loss.requires_grad


def test_fast_refuses_parameters_with_hooks_which_would_run_twice() -> None:
    model = BERT.model()
    adversary = AdversarialEmbedding(model, gradient="fast")
    handle = model.classifier.weight.register_hook(lambda grad: 2 * grad)
    with pytest.raises(RuntimeError, match=r'gradient="fast" would run the hooks.*classifier.*twice.*gradient="exact"'):
        adversary(**BERT.batch())
    handle.remove()
    model.classifier.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    adversary(**BERT.batch()).loss.backward()
    assert_close(gradients(model), expected_gradients("fast"))


def test_fast_differentiates_the_clean_pass_once() -> None:
    counts = []
    for gradient in ("exact", "fast"):
        model = BERT.model()
        backward_passes: list[None] = []
        model.classifier.register_forward_hook(
            lambda module, args, output, seen=backward_passes: (
                output.register_hook(lambda grad: seen.append(None)) and None
            )
        )
        AdversarialEmbedding(model, gradient=gradient)(**BERT.batch()).loss.backward()
        counts.append(len(backward_passes))
    assert counts == [3, 2]


@both_gradients
@pytest.mark.parametrize("wrapped_by", ["compile()", "torch.compile"])
def test_compiled_after_the_hook_is_attached(gradient: str, wrapped_by: str) -> None:
    torch.compiler.reset()
    torch.manual_seed(3)
    model = PlainClassifier()
    adversary = AdversarialEmbedding(model, gradient=gradient, loss_fn=F.cross_entropy)
    batch = BERT.batch()
    adversary(**batch).loss.backward()
    expected = [value.clone() for value in gradients(model)]
    if wrapped_by == "compile()":
        model.compile(backend="aot_eager")
    else:
        adversary.model = torch.compile(model, backend="aot_eager")
    adversary.model(batch["input_ids"])  # compiled in training mode, but without the adversary's passes
    for _ in range(2):
        model.zero_grad()
        adversary(**batch).loss.backward()
        assert_close(gradients(model), expected)
    model.eval()
    assert torch.equal(adversary(**batch), adversary.model(batch["input_ids"], batch["attention_mask"]))


@both_gradients
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_transformer_takes_batches_of_any_length(gradient: str, compiler: str) -> None:
    torch.compiler.reset()
    model = BERT.model()
    adversary = AdversarialEmbedding(model, gradient=gradient)
    lengths = (5, 7, 6, 5)

    def train() -> list[list[Tensor]]:
        found = []
        for length in lengths:
            batch = BERT.batch()
            batch = {name: value[:, :length] if value.ndim == 2 else value for name, value in batch.items()}
            model.zero_grad()
            adversary(**batch).loss.backward()
            found.append([value.clone() for value in gradients(model)])
        return found

    expected = train()
    model.compile(backend=compiler)
    for found, wanted in zip(train(), expected, strict=True):
        assert_close(found, wanted, 1e-5)


@pytest.mark.parametrize("wrapped_by", ["compile()", "torch.compile"])
def test_compiled_before_is_refused(wrapped_by: str) -> None:
    model: Any = BERT.model()
    if wrapped_by == "compile()":
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match=r"compiled already.*first, then compile"):
        AdversarialEmbedding(model)


def test_compiled_parts_beside_the_embedding_do_not_matter() -> None:
    model = BERT.model()
    model.classifier.compile(backend="eager")
    assert AdversarialEmbedding(model)(**BERT.batch()).loss.isfinite()


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@both_gradients
@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
@pytest.mark.parametrize("wrapped", ["before", "after"])
def test_distributed_data_parallel(process_group: None, gradient: str, options: dict[str, bool], wrapped: str) -> None:
    model = BERT.model()
    if wrapped == "before":
        adversary = AdversarialEmbedding(DistributedDataParallel(model, **options), gradient=gradient)
    else:
        adversary = AdversarialEmbedding(model, gradient=gradient)
        adversary.model = DistributedDataParallel(model, **options)
    for _ in range(2):  # the second step is the one after its buckets have been rebuilt
        model.zero_grad()
        adversary(**BERT.batch()).loss.backward()
        assert_close(gradients(model), expected_gradients(gradient))


def shard(model: nn.Module) -> None:
    mesh = init_device_mesh("cpu", (1,))
    for block in model.bert.encoder.layer:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def test_fully_sharded_with_exact_gradients(process_group: None) -> None:
    model = BERT.model()
    adversary = AdversarialEmbedding(model)
    shard(model)
    for _ in range(2):
        model.zero_grad()
        adversary(**BERT.batch()).loss.backward()
        assert_close([value.full_tensor() for value in gradients(model)], expected_gradients("exact"))


def test_fully_sharded_with_fast_gradients_is_refused(process_group: None) -> None:
    model = BERT.model()
    adversary = AdversarialEmbedding(model, gradient="fast")
    shard(model)
    with pytest.raises(RuntimeError, match=r'gradient="fast".*sharded.*"exact"'):
        adversary(**BERT.batch())


def test_data_parallel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DataParallel.*DistributedDataParallel"):
        AdversarialEmbedding(nn.DataParallel(BERT.model()))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_or_pickled_model_works_without_the_adversary(duplicate: Any) -> None:
    model = BERT.model()
    adversary = AdversarialEmbedding(model)
    adversary(**BERT.batch()).loss.backward()
    expected = model(**BERT.batch()).loss
    assert torch.equal(duplicate(model)(**BERT.batch()).loss, expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda adversary: pickle.loads(pickle.dumps(adversary))])
def test_a_copied_or_pickled_adversary_perturbs_its_own_model(duplicate: Any) -> None:
    adversary = AdversarialEmbedding(BERT.model(), start_noise=0.01)
    twin = duplicate(adversary)
    assert twin.model is not adversary.model
    for _ in range(2):
        losses = [each(**BERT.batch()).loss for each in (adversary, twin)]
        assert torch.equal(*losses)
        losses[1].backward()
    assert all(param.grad is None for param in adversary.model.parameters())


def test_two_adversaries_share_a_model() -> None:
    model = BERT.model()
    first, second = AdversarialEmbedding(model), AdversarialEmbedding(model, embedding="word")
    alone = AdversarialEmbedding(BERT.model(), embedding="word")(**BERT.batch()).loss
    first(**BERT.batch())
    torch.testing.assert_close(second(**BERT.batch()).loss, alone)
