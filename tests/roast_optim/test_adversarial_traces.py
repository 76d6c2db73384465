"""What the adversary leaves behind: nothing, in inputs, buffers, modules, memory, threads and torch."""

from __future__ import annotations

import copy
import gc
import resource
import signal
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from roast_optim.adversarial import AdversarialEmbedding
from tests.models import ARCHITECTURES, HIDDEN, VOCABULARY, PlainClassifier

BERT = ARCHITECTURES["bert"]

both_gradients = pytest.mark.parametrize("gradient", ["exact", "fast"])


# -------------------------------------------------------------------------------------------------------------- inputs


class Careless(nn.Module):
    """Changes what it is given, in the way that it is told."""

    def __init__(self, how: str) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding, self.output = nn.Embedding(VOCABULARY, HIDDEN), nn.Linear(HIDDEN, VOCABULARY)
        self.how = how

    def forward(self, features: dict[str, Any], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and logits."""
        ids = features.pop("input_ids") if self.how == "pops" else features["input_ids"]
        if self.how == "changes tokens":
            ids.add_(1).remainder_(VOCABULARY)
        logits, wanted = self.output(torch.tanh(self.embedding(ids))), labels.clone()
        if self.how == "clamps labels":
            wanted = labels.clamp_(0, VOCABULARY - 1)
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        if self.how == "replaces ignored labels":
            labels.masked_fill_(labels == -100, 0)
        elif self.how == "empties a list":
            features["names"].clear()
        elif self.how == "grows a cache":
            features["cache"].update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
            loss = loss * features["cache"].get_seq_length()
        return loss, logits


@pytest.mark.parametrize(
    "how",
    ["pops", "clamps labels", "replaces ignored labels", "changes tokens", "empties a list", "grows a cache"],
)
@both_gradients
def test_a_model_that_changes_its_inputs_sees_the_same_in_both_passes(how: str, gradient: str) -> None:
    """Without a step and dropout, both losses are equal; the batch is as it was."""
    ids = torch.randint(3, VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(6) > 2, -100)
    features = {"input_ids": ids, "names": ["a"], "cache": transformers.DynamicCache()}
    expected = copy.deepcopy((ids, labels))
    adversary = AdversarialEmbedding(Careless(how).train(), step_size=0.0, gradient=gradient)
    adversary(features, labels)[0].backward()
    assert torch.equal(adversary.last_losses["adversarial"], adversary.last_losses["task"])
    assert adversary.last_losses["consistency"] == 0
    assert torch.equal(ids, expected[0])
    assert torch.equal(labels, expected[1])
    assert list(features) == ["input_ids", "names", "cache"]
    assert features["names"] == ["a"]


@both_gradients
def test_a_model_that_changes_embeddings_that_require_a_gradient(gradient: str) -> None:
    class Scaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.output = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 3)

        def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.output(torch.tanh(self.first(features.mul_(2)))).mean(1)
            return F.cross_entropy(logits, labels), logits

    torch.manual_seed(0)
    model, source = Scaling(), torch.randn(2, 3, HIDDEN, requires_grad=True)
    adversary = AdversarialEmbedding(model, step_size=0.0, embedding=model.first, gradient=gradient)
    adversary(source * 1, labels=torch.tensor([0, 1]))[0].backward()
    expected = torch.autograd.grad(model(source * 1, torch.tensor([0, 1]))[0], source)[0]
    assert torch.equal(adversary.last_losses["adversarial"], adversary.last_losses["task"])
    torch.testing.assert_close(source.grad, expected)  # of the clean pass: none comes through the other


# ------------------------------------------------------------------------------------------------------------- buffers


class Codebook(nn.Module):
    """A moving average that is written through .data, which leaves no version behind."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(HIDDEN))

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden states, less the average that there was."""
        average = self.average.clone()
        self.average.data.mul_(0.9).add_(0.1 * hidden.detach().mean((0, 1)))
        return hidden - average


class Queue(nn.Module):
    """Keys of earlier batches, and where the next go."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(8, HIDDEN))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden states, and how they differ from the keys."""
        distance = (hidden.mean(1, keepdim=True) - self.keys.clone().mean(0)).detach()
        with torch.no_grad():
            self.keys[self.place] = hidden.detach().mean((0, 1))
            self.place.add_(1).remainder_(8)
        return hidden + distance


class BatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(HIDDEN)

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalised hidden states."""
        return self.norm(hidden.transpose(1, 2)).transpose(1, 2)


class Replacing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(HIDDEN))

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden states; the buffer is another tensor afterwards."""
        self.average = 0.9 * self.average + hidden.detach().mean((0, 1))
        return hidden


LAYERS = {
    "batch normalisation": BatchNorm,
    "spectral normalisation": lambda: spectral_norm(nn.Linear(HIDDEN, HIDDEN)),
    "codebook": Codebook,
    "queue": Queue,
    "replaced buffer": Replacing,
}


class WithLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embedding, self.layer, self.output = nn.Embedding(VOCABULARY, HIDDEN), layer, nn.Linear(HIDDEN, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.output(self.layer(self.embedding(input_ids)).mean(1))
        return logits


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("options", [{}, {"gradient": "fast"}, {"start_noise": 0.1}], ids=str)
def test_buffers_are_those_of_training_without_the_adversary(make: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = WithLayer(make()).train()
    plain = copy.deepcopy(model)
    adversary = AdversarialEmbedding(model, step_size=0.5, loss_fn=F.cross_entropy, **options)
    for seed in range(5):
        ids = BERT.batch(seed=seed)["input_ids"]
        adversary(ids, labels=ids[:, 0] % 3).loss.backward()
        plain(ids)
        for (name, buffer), (_, expected) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
            assert torch.equal(buffer, expected), f"{name} after batch {seed}"


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
@both_gradients
def test_both_passes_begin_with_the_same_buffers(make: Any, gradient: str) -> None:
    torch.manual_seed(0)
    model = WithLayer(make()).train()
    adversary = AdversarialEmbedding(model, step_size=0.0, loss_fn=F.cross_entropy, gradient=gradient)
    for seed in range(3):
        ids = BERT.batch(seed=seed)["input_ids"]
        adversary(ids, labels=ids[:, 0] % 3)
        assert torch.equal(adversary.last_losses["adversarial"], adversary.last_losses["task"])


def test_buffers_are_given_back_when_the_second_pass_fails() -> None:
    model = WithLayer(BatchNorm()).train()
    calls: list[None] = []

    def loss_fn(output: Tensor, labels: Tensor) -> Tensor:
        calls.append(None)
        if len(calls) == 2:
            raise ZeroDivisionError
        return F.cross_entropy(output, labels)

    ids = BERT.batch()["input_ids"]
    with pytest.raises(ZeroDivisionError):
        AdversarialEmbedding(model, loss_fn=loss_fn)(ids, labels=ids[:, 0] % 3)
    assert model.layer.norm.num_batches_tracked == 1


# -------------------------------------------------------------------------------------------- the run that looks for it


class Switching(nn.Module):
    """A stack that takes itself apart for short inputs."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(HIDDEN, 2, 32, batch_first=True)
        self.words, self.positions = nn.Embedding(VOCABULARY, HIDDEN), nn.Embedding(32, HIDDEN)
        self.dropout = nn.Dropout(0.1)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).layers
        self.register_buffer("calls", torch.zeros(()))
        self.kind = "sparse"

    def forward(self, input_ids: Tensor) -> Tensor:
        """Hidden states."""
        if input_ids.shape[1] < 4:
            self.kind = "full"
            self.blocks[1] = nn.Identity()
        self.calls += 1
        with torch.no_grad():
            self.words.weight.data.clamp_(-9, 9)
        hidden = self.dropout(self.words(input_ids) + self.positions(torch.arange(input_ids.shape[1])))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def big_bird() -> nn.Module:
    return transformers.BigBirdModel(
        transformers.BigBirdConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            attention_type="block_sparse", block_size=4, num_random_blocks=1,
        )
    )  # fmt: skip


@pytest.mark.parametrize("make", [Switching, big_bird])
def test_making_an_adversary_does_not_change_the_model(make: Any) -> None:
    model = make()
    ran: list[None] = []
    model.register_forward_hook(lambda *_: ran.append(None))
    classes = [type(module) for module in model.modules()]
    attributes = {name: value for name, value in vars(model).items() if isinstance(value, (str, int))}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    adversary = AdversarialEmbedding(model)
    assert adversary.embedding_name != "words"
    assert [type(module) for module in model.modules()] == classes
    assert {name: value for name, value in vars(model).items() if isinstance(value, (str, int))} == attributes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not ran


def test_a_module_that_runs_before_the_first_block_and_after_the_last_is_not_the_embedding() -> None:
    class Twice(Switching):
        def forward(self, input_ids: Tensor) -> Tensor:
            return self.dropout(super().forward(input_ids))

    with pytest.warns(UserWarning, match=r"'words', the word-embedding table.*embedding="):
        assert AdversarialEmbedding(Twice()).embedding_name == "words"


# ------------------------------------------------------------------------------------------------------- hook and close


def classifier() -> tuple[nn.Module, AdversarialEmbedding, Tensor]:
    model, ids = PlainClassifier(), BERT.batch()["input_ids"]
    return model, AdversarialEmbedding(model, loss_fn=F.cross_entropy), ids


@pytest.mark.parametrize("closed_by", ["close", "with", "an error"])
def test_a_closed_adversary_leaves_a_model_that_can_be_exported(closed_by: str) -> None:
    torch.compiler.reset()
    model, adversary, ids = classifier()
    if closed_by == "close":
        adversary(ids, labels=ids[:, 0] % 3).loss.backward()
        adversary.close()
        adversary.close()
    elif closed_by == "with":
        with adversary as entered:
            entered(ids, labels=ids[:, 0] % 3).loss.backward()
        assert entered is adversary
    else:
        with pytest.raises(ZeroDivisionError), adversary:
            raise ZeroDivisionError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model.eval()
    expected = model(ids)
    torch.testing.assert_close(torch.jit.script(model)(ids), expected)
    torch.testing.assert_close(torch.export.export(model, (ids,), strict=True).module()(ids), expected)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(ids), expected)
    with torch.no_grad():
        assert torch.equal(adversary(ids), expected)


def test_a_closed_adversary_does_not_train() -> None:
    _, adversary, ids = classifier()
    adversary.close()
    with pytest.raises(RuntimeError, match="closed; make another"):
        adversary(ids, labels=ids[:, 0] % 3)


def test_the_hook_has_a_name() -> None:
    model, adversary, _ = classifier()
    (hook,) = model.embedding._forward_hooks.values()
    assert type(hook).__name__ == "AdversarialEmbeddingHook"
    assert hook.__name__ == "adversarial_embedding_hook"
    del adversary


def test_failed_calls_leave_no_finalizer() -> None:
    _, adversary, ids = classifier()
    counts = []
    for _ in range(3):
        with pytest.raises(ValueError, match="labels=None"):
            adversary(ids)
        gc.collect()
        counts.append(len(weakref.finalize._registry))  # type: ignore[attr-defined]
    assert counts[0] == counts[1] == counts[2]


# ----------------------------------------------------------------------------------------------------- torch and memory


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_torch_compiles_as_before_after_a_call(before: bool, fails: bool) -> None:
    model, batch = BERT.model(), BERT.batch()
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda *_: seen.append(functorch_config.donated_buffer))
    adversary = AdversarialEmbedding(model)
    if fails:
        del batch["labels"]
    try:
        functorch_config.donated_buffer = before
        if fails:
            with pytest.raises(ValueError, match="labels"):
                adversary(**batch)
        else:
            adversary(**batch)
        assert functorch_config.donated_buffer == before
    finally:
        functorch_config.donated_buffer = True
    assert not any(seen)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that comes within a finalizer
def test_an_interrupt_at_any_moment_leaves_torch_and_the_model_as_they_were() -> None:
    """Ctrl-C comes after ever more time; a call takes a few milliseconds."""
    model, batch = BERT.model(), BERT.batch()
    adversary = AdversarialEmbedding(model)
    expected = adversary(**batch).loss.detach()
    interrupted = 0

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for step in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 2e-4 * step)
                adversary(**batch)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            assert functorch_config.donated_buffer
            assert torch.is_grad_enabled()
            assert not any(module._forward_pre_hooks for module in model.modules())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted > 10
    assert torch.equal(adversary(**batch).loss.detach(), expected)


def growth(calls: int, call: Any) -> int:
    """Blocks of memory that Python holds more after so many calls than before."""
    for _ in range(500):  # until torch's lists of free objects are full
        call()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(calls):
        call()
    gc.collect()
    return sys.getallocatedblocks() - before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def tiny_call(gradient: str, fails: bool) -> Any:
    model = PlainClassifier()
    adversary = AdversarialEmbedding(model, loss_fn=F.cross_entropy, gradient=gradient)
    ids = torch.tensor([[1, 2]])

    def call() -> None:
        if fails:
            with pytest.raises(ValueError, match="labels=None"):
                adversary(ids)
        else:
            adversary(ids, labels=torch.tensor([0])).loss.backward()
            model.zero_grad()

    return call


@both_gradients
@pytest.mark.parametrize("fails", [False, True])
def test_calls_leave_nothing_in_memory(gradient: str, fails: bool) -> None:
    assert growth(300, tiny_call(gradient, fails)) < 300  # not one block per call


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory the process has")
@both_gradients
def test_20_000_calls_leave_nothing_in_memory(gradient: str) -> None:
    call = tiny_call(gradient, False)
    growth(0, call)
    before = resident_bytes()
    assert growth(20_000, call) < 500
    assert resident_bytes() - before < 2_000_000  # 100 bytes per call


# ------------------------------------------------------------------------------------------------------------- threads


@both_gradients
def test_threads_that_share_an_adversary_get_the_losses_that_they_would_get_alone(gradient: str) -> None:
    model = BERT.model()
    adversary = AdversarialEmbedding(model, gradient=gradient)
    batches = [BERT.batch(seed=seed) for seed in range(4)]
    expected = [adversary(**batch).loss.detach() for batch in batches]
    plain = model(**batches[0]).loss.detach()
    results: dict[int, list[Tensor]] = {number: [] for number in range(5)}

    def train(number: int) -> None:
        for _ in range(5):
            results[number].append(adversary(**batches[number]).loss.detach())

    def use() -> None:
        for _ in range(10):
            results[4].append(model(**batches[0]).loss.detach())

    threads = [threading.Thread(target=train, args=(number,)) for number in range(4)]
    threads.append(threading.Thread(target=use))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, wanted in enumerate([*expected, plain]):
        assert results[number]
        assert all(torch.equal(loss, wanted) for loss in results[number]), f"thread {number}"
