"""What is measured is what it is called: shapes, bytes, ranks, memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from benchmarks.kernels.contestants import double_argsort, ranked_optimizer, roast, step_bytes, torch_adamw
from benchmarks.kernels.memory import of_call_in_fresh_process, peak_extra_memory
from benchmarks.kernels.workloads import WORKLOADS, bert_shapes, make_parameters, numel

CPU = torch.device("cpu")
SHAPES = bert_shapes(layers=1, hidden=16, vocabulary=32, positions=8)


def test_shapes_are_those_of_a_bert() -> None:
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=8,
    )  # fmt: skip
    expected = [tuple(parameter.shape) for parameter in BertModel(config).parameters()]
    assert sorted(bert_shapes(layers=2, hidden=16, vocabulary=32, positions=8)) == sorted(expected)


@pytest.mark.parametrize(("workload", "elements"), [("25M", 25e6), ("110M", 110e6)])
def test_a_workload_has_as_many_elements_as_its_name_says(workload: str, elements: float) -> None:
    assert abs(numel(WORKLOADS[workload]) / elements - 1) < 0.01


def test_parameters_are_the_same_for_every_contestant() -> None:
    first, second = make_parameters(SHAPES, CPU), make_parameters(SHAPES, CPU)
    assert [tuple(parameter.shape) for parameter in first] == SHAPES
    for one, other in zip(first, second, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert one.equal(other)
        assert one.grad.equal(other.grad)


def test_bytes_per_parameter() -> None:
    elements = numel(SHAPES)
    assert torch_adamw("for-loop", SHAPES, CPU).bytes_moved == 28 * elements
    assert roast("reference", SHAPES, CPU).bytes_moved == 37 * elements
    assert roast("reference", SHAPES, CPU, importance_every=4).bytes_moved == 31 * elements
    assert step_bytes(ranked_optimizer("reference", SHAPES, CPU, dtype=torch.bfloat16)) == 15 * elements


def test_a_ranked_optimizer_draws_masks() -> None:
    optimizer = ranked_optimizer("reference", SHAPES, CPU)
    optimizer.step()
    assert optimizer.selection_stats()["realised_share"] < 0.5


def test_double_argsort_gives_percentile_ranks_over_all_tensors() -> None:
    ranks = double_argsort([torch.tensor([[0.5, 3.0]]), torch.tensor([2.0, 0.1, 1.0])])
    assert ranks.tolist() == [0.25, 1.0, 0.75, 0.0, 0.5]


def test_extra_memory_is_the_peak_and_not_what_is_left() -> None:
    megabytes = 64
    extra = peak_extra_memory(lambda: torch.ones(megabytes << 20, dtype=torch.uint8), CPU) / (1 << 20)
    assert 0.95 * megabytes < extra < 1.25 * megabytes


def test_memory_of_a_call_is_measured_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = tmp_path / "python"  # says whose child it is, where the real one says how many bytes
    executable.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import os; print(os.getppid())'\n")
    executable.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(executable))
    assert of_call_in_fresh_process("refresh", "reference", "1,000 tiny tensors", CPU) == os.getpid()
