"""Attention masks and labels are matched with what the model makes of its tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from roast_optim.token_mask import TokenMask, find_labels, find_tokens

MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def found(
    shape: tuple[int, ...], *masks: Any, looked_up: Any = None, cached: bool = False, tokens_first: bool = False
) -> TokenMask:
    return find_tokens(masks, looked_up, ["keys"] if cached else [None], torch.Size(shape), tokens_first)


def assert_tokens(rows: TokenMask, expected: Any) -> None:
    assert rows.misfit is None
    assert rows.tokens is not None
    assert rows.tokens.dtype == torch.bool
    assert rows.tokens.int().tolist() == expected


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("expected_layout", [False, True])
def test_the_shape_tells_the_layout(dtype: torch.dtype, expected_layout: bool) -> None:
    rows = found((2, 3, 5), MASK.to(dtype), tokens_first=expected_layout)
    assert not rows.tokens_first
    assert_tokens(rows, MASK.tolist())
    rows = found((3, 2, 5), MASK.to(dtype), tokens_first=expected_layout)
    assert rows.tokens_first
    assert_tokens(rows, MASK.T.tolist())


@pytest.mark.parametrize("expected_layout", [False, True])
def test_a_square_mask_has_the_layout_that_is_expected(expected_layout: bool) -> None:
    square = torch.tensor([[1, 1], [1, 0]]).triu()
    rows = found((2, 2, 5), square, tokens_first=expected_layout)
    assert rows.tokens_first == expected_layout
    assert_tokens(rows, (square.T if expected_layout else square).tolist())


def test_several_sequences_per_sample_are_flattened() -> None:
    assert_tokens(found((2, 3, 5), MASK.view(1, 2, 3)), MASK.tolist())


def test_one_mask_serves_all_samples() -> None:
    assert_tokens(found((2, 3, 5), MASK[:1]), [[1, 1, 0], [1, 1, 0]])


def test_the_first_mask_that_fits_counts() -> None:
    assert_tokens(found((2, 4, 5), MASK, None, torch.ones(2, 1, 4, 4), torch.ones(2, 4)), [[1] * 4, [1] * 4])


@pytest.mark.parametrize("tokens_first", [False, True])
def test_what_a_model_pads_inside_lies_behind_its_tokens(tokens_first: bool) -> None:
    ids, shape = torch.zeros(2, 5, dtype=torch.long), (2, 5, 4)
    expected = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    if tokens_first:
        ids, shape, expected = ids.T, (5, 2, 4), expected.T
    assert_tokens(found(shape, MASK, looked_up=ids, tokens_first=tokens_first), expected.tolist())


def test_of_a_mask_that_covers_a_cache_the_end_counts() -> None:
    assert_tokens(found((2, 2, 4), MASK, cached=True), [[1, 0], [0, 0]])


@pytest.mark.parametrize(
    ("shape", "masks", "misfit"),
    [
        ((2, 5, 4), [MASK], (2, 3)),
        ((2, 5, 4), [MASK[0]], None),
        ((2, 2, 4), [MASK], (2, 3)),
        ((4, 3, 4), [MASK], (2, 3)),
        ((2, 3, 4), [], None),
        ((2, 3, 4), [None, "mask", torch.ones(2, 1, 3, 3), torch.ones(3)], None),
        ((6, 4), [MASK], None),
    ],
)
def test_without_a_match_all_rows_are_tokens(
    shape: tuple[int, ...], masks: list[Any], misfit: tuple[int, ...] | None
) -> None:
    assert found(shape, *masks) == TokenMask(None, False, misfit)


LABELS = torch.tensor([[1, -100, 2]])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([LABELS], LABELS),
        ([torch.zeros(1, 5).long(), LABELS], LABELS),
        ([LABELS.flatten()], LABELS.flatten()),
        ([None, LABELS.float(), "labels"], None),
        ([torch.tensor([1])], None),
    ],
)
def test_labels_of_as_many_elements_as_predictions_count(labels: list[Any], expected: Tensor | None) -> None:
    answer = find_labels(labels, torch.Size([1, 3, 7]))
    assert (answer.labels is None) == (expected is None)
    assert expected is None or torch.equal(answer.labels, expected)  # type: ignore[arg-type]
    assert answer.misfit is None


def test_what_is_in_no_table_may_stand_anywhere() -> None:
    assert found((2, 5, 4), MASK, looked_up=torch.zeros(2, 3)) == TokenMask(None, False, (2, 3))


def test_labels_per_token_of_another_length_are_told() -> None:
    assert find_labels([LABELS], torch.Size([1, 5, 7])).misfit == (1, 3)
