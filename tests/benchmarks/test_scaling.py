"""The tables of docs/scaling.md are those that the script computes."""

from __future__ import annotations

import pytest

from benchmarks.scaling import (
    MODELS,
    PAGE,
    Moved,
    Row,
    collectives_of_training,
    communication_table,
    gathering_table,
    memory_table,
    simulate,
)


@pytest.mark.parametrize("world_size", [1, 1024])
def test_the_page_shows_what_is_computed(world_size: int) -> None:
    row = simulate(MODELS["RoBERTa-base"], world_size)
    for table in (memory_table, communication_table):
        assert table({("RoBERTa-base", world_size): row}).splitlines()[-1] in PAGE.read_text()


def test_the_page_shows_how_often_a_model_is_gathered() -> None:
    assert gathering_table(12) in PAGE.read_text()


@pytest.mark.parametrize("adversarial", [False, True])
def test_gradients_are_reduced_once_though_there_are_two_passes(adversarial: bool) -> None:
    assert collectives_of_training(adversarial, blocks=3)["reduced"] == Moved(blocks=1, rest=1)


def test_selection_costs_five_bytes_of_memory_and_nine_of_traffic_per_selective_parameter() -> None:
    row: Row = simulate(MODELS["RoBERTa-base"], 1)
    blocks = 12 * (4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768)
    assert row.roast_memory - row.adamw_memory == 5 * blocks
    assert row.roast_traffic - row.adamw_traffic == 9 * blocks
    assert (row.adamw_memory, row.adamw_traffic) == (16 * row.parameters, 28 * row.parameters)
