"""The native kernels on aarch64, by an emulator: the vectors bit for bit, AdamW to rounding, and the bits of x86."""

from __future__ import annotations

import platform
import random
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from roast_optim.kernels import native, reference
from roast_optim.kernels.step import HISTOGRAM_BINS, TENSORS, Position, Selection
from tests.kernels.emulated.emulated_backend import EmulatedBackend, compile_calls
from tests.oracles import philox, ranks
from tests.support.instruction_sets import using
from tests.support.steps import OF_SELECTION, OPTIONAL, Step, assert_same_tensors, random_step, selection

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not found: Debian's "
                       "g++-aarch64-linux-gnu and qemu-user have them"),
]  # fmt: skip

DTYPES = (torch.float32, torch.bfloat16)
NO_RESCALING = torch.ones(256)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedBackend]:
    """The backend, compiled without a warning."""
    program = tmp_path_factory.mktemp("aarch64") / "calls"
    compile_calls(COMPILER, program)
    backend = EmulatedBackend([EMULATOR, str(program)])
    yield backend
    backend.close()


def floats(bits: list[str]) -> Tensor:
    return torch.from_numpy(np.array([int(word, 16) for word in bits], np.uint32).view(np.float32))


def selected_gradients(backend: EmulatedBackend, codes: Tensor, place: Position, chosen: Selection) -> Tensor:
    """What becomes of gradients of one: the first moment of a step that forgets the one before."""
    step = random_step([tuple(codes.shape)], positions=[place], selection=chosen, beta1=0.0)
    step.change(rank_code=codes, grad=torch.ones(codes.shape))
    return step.run(backend).rows[0].exp_avg


def test_an_element_is_kept_iff_its_word_of_the_vectors_is_below_its_threshold(
    emulated: EmulatedBackend, vectors: Callable[[str], Any]
) -> None:
    for case in vectors("draw"):
        words = torch.tensor([int(word, 16) for word in case["words"]])
        place = Position(case["parameter_id"], case["first_element"], len(words), 0)
        for above in (0, 1):
            thresholds = torch.ones(256, dtype=torch.int64)
            thresholds[: len(words)] = words + above
            chosen = Selection(case["seed"], thresholds, NO_RESCALING, case["draw_number"])
            kept = selected_gradients(emulated, torch.arange(len(words)).to(torch.uint8), place, chosen)
            assert torch.equal(kept, torch.full_like(kept, above)), case


def test_masks_and_rescaling_follow_the_vectors_of_the_tables(
    emulated: EmulatedBackend, vectors: Callable[[str], Any]
) -> None:
    codes = torch.arange(4096).remainder(256).to(torch.uint8)
    for number, case in enumerate(vectors("thresholds")):
        thresholds = np.array([int(word, 16) for word in case["thresholds"]], np.int64)
        factors = floats(case["rescaling_factors"])
        chosen = Selection(number, torch.from_numpy(thresholds), factors, 5)
        words = philox.random_words(number, 3, 5, np.arange(len(codes)))
        kept = torch.from_numpy(words < thresholds.astype(np.uint64)[codes.numpy()])
        expected = torch.where(kept, factors[codes.long()], 0)
        result = selected_gradients(emulated, codes, Position.whole(3, len(codes)), chosen)
        assert torch.equal(result, expected), (case["alpha"], case["beta"])


def test_importance_equals_the_vectors(emulated: EmulatedBackend, vectors: Callable[[str], Any]) -> None:
    case = vectors("importance")
    importance = floats(case["before"])
    emulated.accumulate_importance_([importance], [floats(case["gradient"])])
    assert torch.equal(importance.view(torch.int32), floats(case["after"]).view(torch.int32))


def test_rank_codes_equal_the_vectors(emulated: EmulatedBackend, vectors: Callable[[str], Any]) -> None:
    for case in vectors("scores"):
        scores = [floats(bits) for bits in case["scores"]]
        counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64)
        emulated.histogram_(scores, counts)
        occupied = counts.nonzero().flatten().tolist()
        table = torch.zeros(HISTOGRAM_BINS, dtype=torch.uint8)
        for occupied_bin, code in ranks.rank_codes_of_histogram({b: int(counts[b]) for b in occupied}).items():
            table[occupied_bin] = code
        codes = [torch.zeros(len(tensor), dtype=torch.uint8) for tensor in scores]
        emulated.assign_rank_codes_(scores, codes, table)
        assert [code.tolist() for code in codes] == case["rank_codes"], case["name"]
        assert not any(tensor.any() for tensor in scores), case["name"]


def random_steps(count: int) -> Iterator[Step]:
    """Steps of several parameters with every option."""
    choose = random.Random(0)
    for seed in range(count):
        shapes = [choose.choice([(), (0,), (3,), (65,), (7, 64), (257,), (33_000,)]) for _ in range(3)]
        numels = [max(torch.Size(shape).numel(), 1) for shape in shapes]
        yield random_step(
            shapes,
            dtype=choose.choice(DTYPES),
            moment_dtype=choose.choice(DTYPES),
            score_dtype=choose.choice(DTYPES),
            optional=choose.choice([OPTIONAL, OF_SELECTION]),
            positions=[
                Position(choose.randrange(2**32), choose.choice([0, 3, 2**34 - 40]), choose.choice([1, 5, numel]), 64)
                for numel in numels
            ],
            steps=choose.choice([0, 1, 1000]),
            seed=seed,
            beta1=choose.choice([0.0, 0.3, 0.9]),
            maximize=choose.random() < 0.5,
            accumulate=choose.random() < 0.5,
            pretrained_decay=choose.choice([0.0, 0.5]),
            pretrained_decay_by=choose.choice(["uniform", "rank"]),
            selection=choose.choice(
                [selection(), selection(7, alpha=0.9, seed=2**64 - 1), selection(acts_on="update"), None]
            ),
        )


def test_steps_equal_the_reference_in_float64_to_rounding(emulated: EmulatedBackend) -> None:
    for number, step in enumerate(random_steps(60)):
        expected = step.copy(values=torch.float64).run(reference)
        step.run(emulated)
        for name in [name for name in step.names if TENSORS[name].written]:
            for i, (value, wanted) in enumerate(zip(step.column(name), expected.column(name), strict=True)):
                # The final rounding, and eight of float32 arithmetic on operands of about one or on the result.
                tolerance = wanted.abs() * (torch.finfo(value.dtype).eps / 2 + 8 * 2.0**-24) + 2e-6
                assert ((value.double() - wanted).abs() <= tolerance).all(), f"step {number}, {name} of parameter {i}"


@pytest.mark.skipif(
    platform.machine() != "x86_64" or native.unavailable() is not None, reason="no x86-64 to compare with"
)
def test_steps_have_the_bits_of_the_portable_kernels_of_x86(emulated: EmulatedBackend) -> None:
    for number, step in enumerate(random_steps(60)):
        step.set(stochastic_rounding=number % 2 == 0, rounding_seed=2**64 - 1 - number)
        expected = step.copy()
        with using("portable"):
            expected.run(native)
        assert_same_tensors(step.run(emulated), expected)


def test_what_is_wrong_with_a_call_is_said(emulated: EmulatedBackend) -> None:
    step = random_step([(5,)], positions=[Position(0, 0, 0, 0)])
    with pytest.raises(ValueError, match="a position is impossible"):
        step.run(emulated)
