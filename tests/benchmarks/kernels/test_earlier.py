"""The package against an earlier version, here itself: processes that take turns. No test looks at a clock."""

from __future__ import annotations

import sys

import pytest

from benchmarks.kernels.earlier import CASES, Version, compared

SHORTEST = "step 1,000 tiny tensors float32"


def test_two_versions_take_turns_and_each_answers_with_its_seconds() -> None:
    ratio = compared(SHORTEST, sys.executable, processes=1, rounds=2)
    assert ratio["seconds"] > 0
    assert ratio["lower_quartile"] <= ratio["ratio"] <= ratio["upper_quartile"]


def test_a_version_that_cannot_work_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert SHORTEST in CASES
    with pytest.raises(SystemExit, match="'no such case': no answer"):
        Version(sys.executable, "no such case")
