"""Training that is killed at random moments and resumed ends with the bits of training that is not.

`make kill-and-resume` does it 50 times, the slow tests 10 times.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from torch.utils._pytree import keystr, tree_flatten_with_path

from tests.faults.resumable_training import STEPS, load, train
from tests.support.snapshot import assert_same_bits

ROUNDS = int(os.environ.get("ROAST_KILL_ROUNDS", "10"))
MOST_KILLS = 3  # per round
_IMPORTED_ONCE = ["tests.faults.resumable_training", "transformers.models.bert.modeling_bert"]


def train_in_process(folder: Path, backend: str, seconds: float | None = None) -> int:
    """The exit code of a training that is killed after so many seconds, if it still runs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED_ONCE)
    process = context.Process(target=train, args=(str(folder), backend))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def leaves_of(states: object) -> dict[str, object]:
    """Every leaf of nested states by its path."""
    return {keystr(path): leaf for path, leaf in tree_flatten_with_path(states)[0]}


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(tmp_path: Path, backend: str) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert train_in_process(whole, backend) == 0  # also starts the fork server, which is not to be timed
    started = time.monotonic()
    assert train_in_process(whole, backend) == 0  # from its last checkpoint: nothing but the start
    start = time.monotonic() - started
    again = tmp_path / "again"
    again.mkdir()
    started = time.monotonic()
    assert train_in_process(again, backend) == 0
    duration = time.monotonic() - started
    expected = leaves_of(load(str(whole)))
    assert expected["['step']"] == STEPS

    moments = random.Random(backend)
    kills = resumed = 0
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        for _ in range(MOST_KILLS):
            started = time.monotonic()
            code = train_in_process(folder, backend, moments.uniform(start, duration))
            kills += code == -signal.SIGKILL
            if code == 0:  # what was measured had been slower: it is not to end before it is killed again and again
                duration = min(duration, time.monotonic() - started)
                break
        resumed += (folder / "checkpoint.pt").exists()
        assert train_in_process(folder, backend) == 0
        found = leaves_of(load(str(folder)))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if hasattr(value, "dtype"):
                assert_same_bits(found[name], value, name)
            else:
                assert found[name] == value, name
    print(f"{backend}: {ROUNDS} of {ROUNDS} equal after {kills} kills")
    assert kills >= ROUNDS
    assert resumed > ROUNDS // 2  # most were killed after the first checkpoint
