"""What every backend must compute alike: importance, histogram and rank codes bit for bit, and the masks of a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from roast_optim.kernels.step import HISTOGRAM_BINS, Position, Selection
from tests.oracles import philox, ranks
from tests.support.devices import on_device
from tests.support.snapshot import assert_same_bits
from tests.support.steps import random_step

ALPHA, BETA, SEED = 0.5, 3.0, 2**40 + 7


def floats(bits: list[str]) -> Tensor:
    return torch.from_numpy(np.array([int(word, 16) for word in bits], np.uint32).view(np.float32))


def scores(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0)).mul(5).exp()


def test_importance_equals_the_vectors(vectors: Callable[[str], Any], device_backend: str) -> None:
    case = vectors("importance")
    importance, expected = floats(case["before"]), floats(case["after"])
    gradient = floats(case["gradient"])
    on_device(device_backend).accumulate_importance_([importance], [gradient])
    assert_same_bits(importance, expected)
    assert_same_bits(gradient, floats(case["gradient"]))


def test_importance_of_several_tensors_of_any_layout(device_backend: str) -> None:
    gradients = [
        torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in [(), (0,), (7,), (600, 500)]
    ]
    gradients.append(gradients[-1].T.contiguous().T)
    importances = [torch.full_like(gradient, 0.5, memory_format=torch.contiguous_format) for gradient in gradients]
    on_device(device_backend).accumulate_importance_(importances, gradients)
    for importance, gradient in zip(importances, gradients, strict=True):
        expected = ranks.accumulated(np.full(gradient.shape, 0.5, np.float32), gradient.numpy())
        np.testing.assert_array_equal(importance.numpy(), expected)


def test_histogram_adds_the_number_of_scores_of_each_bin(device_backend: str) -> None:
    edges = np.array([0, 0x7FFF, 0x8000, 0x007FFFFF, 0x00800000, 0x3F800000, 0x7F7FFFFF], np.uint32).view(np.float32)
    tensors = [torch.from_numpy(edges), scores(300_001), torch.zeros(0), torch.tensor(1.0), scores(60).view(6, 10).T]
    counts = torch.ones(HISTOGRAM_BINS, dtype=torch.int64)
    on_device(device_backend).histogram_(tensors, counts)
    expected = np.ones(HISTOGRAM_BINS, np.int64)
    for tensor in tensors:
        expected += np.bincount(ranks.bins(tensor.numpy()).reshape(-1), minlength=HISTOGRAM_BINS)
    np.testing.assert_array_equal(counts.numpy(), expected)


def test_rank_codes_are_looked_up_and_importance_reset(device_backend: str) -> None:
    table = torch.randint(256, (HISTOGRAM_BINS,), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    tensors = [scores(300_001), torch.zeros(0), torch.tensor(1.0), scores(60).view(6, 10).T]
    expected = [table.numpy()[ranks.bins(tensor.numpy())] for tensor in tensors]
    codes = [torch.empty_like(tensor, dtype=torch.uint8) for tensor in tensors]
    on_device(device_backend).assign_rank_codes_(tensors, codes, table)
    for code, importance, wanted in zip(codes, tensors, expected, strict=True):
        np.testing.assert_array_equal(code.numpy(), wanted)
        assert not importance.any()


def masked_gradient(
    device_backend: str,
    gradient: Tensor,
    codes: Tensor,
    place: Position,
    *,
    steps_before: int = 4,
    thresholds: npt.NDArray[np.uint64] | None = None,
) -> Tensor:
    """The first moment after a step with beta1 = 0: the gradient that AdamW sees."""
    thresholds = philox.thresholds(ALPHA, BETA) if thresholds is None else thresholds
    step = random_step(
        [tuple(gradient.shape)],
        positions=[place],
        steps=steps_before,
        beta1=0.0,
        weight_decay=0.0,
        selection=Selection(
            SEED,
            torch.from_numpy(thresholds.astype(np.int64)),
            torch.from_numpy(philox.rescaling_factors(ALPHA, BETA).copy()),
            None,
        ),
    )
    step.change(grad=gradient, exp_avg=torch.zeros(gradient.shape), rank_code=codes)
    return step.run(on_device(device_backend)).rows[0].exp_avg


@pytest.mark.parametrize("rows", [slice(0, 5), slice(3, 8), slice(9, 10), slice(4, 4)], ids=str)
@pytest.mark.parametrize("columns", [slice(0, 11), slice(2, 6), slice(10, 11)], ids=str)
def test_a_shard_of_a_parameter_has_the_masks_of_the_whole(rows: slice, columns: slice, device_backend: str) -> None:
    gradient = torch.randn(10, 11, generator=torch.Generator().manual_seed(3))
    codes = torch.randint(256, (10, 11), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    kept = philox.keep_mask(codes.numpy(), ALPHA, BETA, seed=SEED, parameter_id=3, draw_number=5)
    factors = philox.rescaling_factors(ALPHA, BETA)[codes.numpy()]
    expected = np.where(kept, gradient.numpy() * factors, np.float32(0))
    whole = masked_gradient(device_backend, gradient, codes, Position.whole(3, 110))
    np.testing.assert_array_equal(whole.numpy(), expected)
    width = columns.stop - columns.start
    place = Position(3, rows.start * 11 + columns.start, width, 11)
    part = masked_gradient(device_backend, gradient[rows, columns].clone(), codes[rows, columns].clone(), place)
    np.testing.assert_array_equal(part.numpy(), expected[rows, columns])


def test_a_shard_of_more_than_one_chunk_has_the_masks_of_the_whole(device_backend: str) -> None:
    gradient = torch.ones(700, 1_001)
    codes = torch.randint(256, gradient.shape, generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    kept = philox.keep_mask(codes.numpy(), ALPHA, BETA, seed=SEED, parameter_id=1, draw_number=5)
    for rows, columns in ((slice(0, 700), slice(100, 1_000)), (slice(101, 700), slice(0, 1_001))):
        width = columns.stop - columns.start
        place = Position(1, rows.start * 1_001 + columns.start, width, 1_001)
        part = masked_gradient(device_backend, gradient[rows, columns].clone(), codes[rows, columns].clone(), place)
        np.testing.assert_array_equal(part.numpy() != 0, kept[rows, columns])


def test_a_shard_beyond_element_2_to_the_34_has_the_masks_of_the_whole(device_backend: str) -> None:
    first = 2**34 - 10
    codes = torch.full((4, 5), 128, dtype=torch.uint8)
    elements = first + np.arange(20) // 5 * 13 + np.arange(20) % 5
    words = philox.random_words(SEED, 2, 5, elements).reshape(4, 5)
    part = masked_gradient(device_backend, torch.ones(4, 5), codes, Position(2, first, 5, 13))
    np.testing.assert_array_equal(part.numpy() != 0, words < philox.thresholds(ALPHA, BETA)[128])


def test_the_draw_number_is_exact_up_to_2_to_the_24(device_backend: str) -> None:
    """Steps are counted in float32, which holds every integer up to 2^24."""
    codes = torch.full((100,), 128, dtype=torch.uint8)
    kept = philox.keep_mask(codes.numpy(), ALPHA, BETA, seed=SEED, parameter_id=0, draw_number=2**24)
    part = masked_gradient(device_backend, torch.ones(100), codes, Position.whole(0, 100), steps_before=2**24 - 1)
    np.testing.assert_array_equal(part.numpy() != 0, kept)


@pytest.mark.parametrize(("above", "keeps"), [(0, False), (1, True)])
def test_an_element_is_kept_only_if_its_word_is_below_the_threshold(
    above: int, keeps: bool, device_backend: str
) -> None:
    """Thresholds equal to the words themselves, half of which have their highest bit set."""
    thresholds = philox.random_words(SEED, 0, 5, np.arange(256)) + np.uint64(above)
    codes = torch.arange(256).to(torch.uint8)
    part = masked_gradient(device_backend, torch.ones(256), codes, Position.whole(0, 256), thresholds=thresholds)
    assert ((part != 0) == keeps).all()


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Sets the number of threads back to what it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restored_threads")
def test_results_do_not_depend_on_the_number_of_threads(device_backend: str) -> None:
    """Sizes that no number of threads divides."""

    def results(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        sizes = (300_001, 7, 0, 70_003)
        gradients = [scores(size).sub(0.5) for size in sizes]
        importances = [torch.zeros(size) for size in sizes]
        rank_codes = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
        counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64)
        module = on_device(device_backend)
        module.accumulate_importance_(importances, gradients)
        accumulated = [importance.clone() for importance in importances]
        module.histogram_(importances, counts)
        table = (torch.arange(HISTOGRAM_BINS) % 251).to(torch.uint8)
        module.assign_rank_codes_(importances, rank_codes, table)
        moments = [
            masked_gradient(device_backend, gradient, codes, Position.whole(index, gradient.numel()))
            for index, (gradient, codes) in enumerate(zip(gradients, rank_codes, strict=True))
        ]
        return [*accumulated, counts, *rank_codes, *moments]

    expected = results(1)
    for threads in (2, 3, 5):
        for one, several in zip(expected, results(threads), strict=True):
            assert_same_bits(several, one)
