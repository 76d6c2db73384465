"""What is measured and how it is judged: with made-up events in the place of a GPU's, and from end to end on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import predictions, report, steps, timing
from benchmarks.gpu.plan import STAGES
from benchmarks.gpu.predictions import PREDICTIONS, judged
from benchmarks.gpu.report import Report
from benchmarks.gpu.runner import ROOT
from benchmarks.gpu.stage_results import Results
from benchmarks.gpu.stages import environment, graph, kernel_tests
from benchmarks.gpu.table import table
from benchmarks.kernels.contestants import ranked
from benchmarks.kernels.pairs import Contestant
from tests.benchmarks.gpu.written import rows


class OnAGpu(Report):
    """A report whose device is no CPU; tensors on it have no contents."""

    @property
    def device(self) -> torch.device:
        """Of tensors without memory."""
        return torch.device("meta")


class Clock:
    """The time that made-up events and contestants share."""

    now = 0.0

    def event(self) -> Any:
        made = SimpleNamespace(at=0.0)
        made.record = lambda: setattr(made, "at", self.now)
        made.elapsed_time = lambda end: 1e3 * (end.at - made.at)
        return made

    def takes(self, seconds: float) -> Any:
        def run() -> None:
            self.now += seconds

        return run


def test_gpu_time_is_that_between_the_events_per_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "_event", clock.event)
    enqueued: list[float] = []
    monkeypatch.setattr(timing, "_Filler", lambda device: SimpleNamespace(enqueue=enqueued.append))
    slow = Contestant("slow", clock.takes(0.008), calls=4, bytes_moved=6e9)
    copy = Contestant("copy", clock.takes(0.001), bytes_moved=3e9)
    gpu = OnAGpu(tmp_path / "rows", 100.0, dry_run=False)
    times = timing.in_turn([slow, copy], gpu, rounds=5)
    found = timing.figures(slow, times, copy, "copy")
    assert found["gpu_ms"] == pytest.approx(2.0)
    assert found["GB_per_s"] == pytest.approx(3000)
    assert found["share_of_copy"] == pytest.approx(1.0)  # twice the bytes in twice the time
    assert found["times_copy"] == pytest.approx(2.0)
    assert len(times["slow"].gpu) == len(times["slow"].host) == len(times["slow"].wall) == 5
    assert len(enqueued) == 10
    timing.in_turn([copy], gpu, rounds=5, host_waits=True)
    assert len(enqueued) == 10


def test_the_gpu_is_kept_busy_for_at_least_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "_event", clock.event)
    enqueue = timing._Filler.enqueue

    def takes_time(self: Any, seconds: float) -> None:
        enqueue(self, seconds)
        clock.now += 0.0002 * self._copies(seconds)

    monkeypatch.setattr(timing._Filler, "enqueue", takes_time)
    filler = timing._Filler(torch.device("meta"))
    before = clock.now
    filler.enqueue(0.01)
    assert 0.01 <= clock.now - before <= 0.0105


def test_a_captured_step_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: taken.append("replay")))
    monkeypatch.setattr(torch.cuda, "graph", lambda recorded: nullcontext())
    optimizer: Any = SimpleNamespace(step=lambda: taken.append("captured"))
    graph.capture(optimizer, OnAGpu(tmp_path / "rows", 100.0, dry_run=False))()
    assert taken == ["captured", "replay"]


def test_the_environment_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = OnAGpu(tmp_path / "rows", 100.0, dry_run=False)
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", total_memory=80 * 2**30, multi_processor_count=132, major=9, minor=0
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    environment.card(gpu)
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    for answer, status, known in (("580.1, 1980 MHz, 2619 MHz, 1, 2, 700.00 W, 40", 0, True), ("no device", 9, False)):
        tool.write_text(f"#!/bin/sh\necho '{answer}'\nexit {status}\n")
        tool.chmod(0o755)
        environment.clocks(gpu)
        assert ("figures" in rows(gpu)[-1]) == known
    card, clocks = (row["figures"] for row in rows(gpu)[:2])
    assert (card["name"], card["capability"], card["memory_GiB"]) == ("NVIDIA H100 80GB HBM3", "9.0", 80.0)
    assert (clocks["clocks_sm"], clocks["temperature_gpu"]) == ("1980 MHz", "40")


def test_an_option_that_is_not_there_is_absent_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        steps, "optimizer_over", lambda parameters, **options: ranked(parameters, backend="reference", **options)
    )
    monkeypatch.setattr(
        steps, "VARIANTS", {"RoAST": {}, "RoAST, new": {"no_such_option": 1}, "RoAST, old": {"seed": 3}}
    )
    cpu = Report(tmp_path / "rows", 100.0, dry_run=True)
    steps.compare_steps(cpu, "110M", "float32", ["RoAST", "RoAST, new", "RoAST, old", steps.FUSED], "float32: ")
    found = {row["what"]: row for row in rows(cpu)}
    assert found["float32: RoAST, new"]["absent"] == "RoastAdamW has no option no_such_option"
    per_element = {what: row["figures"]["bytes_per_element"] for what, row in found.items() if "figures" in row}
    assert per_element == {"float32: RoAST": 37, "float32: RoAST, old": 37, f"float32: {steps.FUSED}": 28}


# -------------------------------------------------------------------------------------------------------------- judging


def results(rate: float | None, figures: dict[str, dict[str, float]], dry_run: bool = False) -> Results:
    made = Results.of(STAGES, "2026-01-01T00:00:00+00:00", dry_run, 480.0)
    by_name = {stage.name: stage for stage in made.stages}
    by_name["step, 110M"].rows = [{"what": what, "figures": each} for what, each in figures.items()]
    if rate is not None:
        by_name["environment"].rows = [{"what": "copy", "figures": {"GB_per_s": rate}}]
    return made


ROAST, FUSED = "float32: RoAST", "float32: torch AdamW, fused"


@pytest.mark.parametrize(
    ("rate", "figures", "verdict"),
    [
        (3000.0, {"gpu_ms": 1.36}, "1.00 of it"),
        (3000.0, {"gpu_ms": 1.6}, "1.18 of it: missed by more than a tenth"),
        (4300.0, {"gpu_ms": 1.0}, "1.05 of it"),
        (4300.0, {"gpu_ms": 1.36}, "1.43 of it: missed by more than a tenth"),
        (None, {"gpu_ms": 1.4}, "1.03 of it"),
    ],
)
def test_predicted_times_are_those_of_the_copy_rate(
    rate: float | None, figures: dict[str, float], verdict: str
) -> None:
    assert judged(results(rate, {ROAST: figures}))[0][3] == verdict


def test_shares_and_times_of_the_host_are_judged() -> None:
    figures = {ROAST: {"share_of_copy": 0.89, "host_ms": 0.4}, FUSED: {"host_ms": 0.2}}
    of = {line[0]: line[1:] for line in judged(results(3000.0, figures))}
    assert of["float32: RoAST, share of copy"] == ("at least 0.9", "0.89", "0.99 of it: missed")
    assert of["float32: RoAST, host ms"] == (f"at most that of {FUSED}", "0.4", "2.00 of it: missed")
    assert of["bfloat16: RoAST, host ms"][1] == "not measured"
    assert all("not judged" in line[3] for line in judged(results(3000.0, figures, dry_run=True)) if line[3])


def test_predictions_are_about_rows_that_the_stage_reports() -> None:
    names = [f"{dtype}: {name}" for dtype in steps.DTYPES for name in (*steps.VARIANTS, steps.FUSED, steps.FOREACH)]
    assert {prediction.what for prediction in PREDICTIONS} <= set(names)
    assert {each.against for each in PREDICTIONS} - {None} <= set(names)
    assert predictions.STEP in [stage.name for stage in STAGES]


def test_the_table_is_markdown_whatever_a_stage_says() -> None:
    made = results(3000.0, {ROAST: {"gpu_ms": 1.36}})
    made.stages[1].status, made.stages[1].reason = "failed", "a | b\nc" + 400 * "d"
    made.stages[1].rows = [
        {"what": "masks", "wrong": "they | differ"},
        {"what": "tool", "absent": "not\nthere"},
        {"what": "small", "figures": {"x": 1.0}, "detail": True},
    ]
    text = table(made)
    assert "| smoke | masks | **wrong**: they / differ |" in text
    assert "| smoke | tool | absent: not there |" in text
    assert "small" not in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (4, 5)
    assert text.startswith("unknown card; 2026")


# --------------------------------------------------------------------------------------------------------- as a program


def test_without_a_gpu_a_stage_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"finds no GPU.*--dry-run"):
        report.run_stage(lambda report: None, ["--rows", str(tmp_path / "rows")])


def test_all_stages_can_be_imported_from_the_bare_source_tree_without_what_a_gpu_machine_lacks() -> None:
    modules = [stage.program[1] for stage in STAGES] + ["benchmarks.gpu.cases", "benchmarks.gpu.two_steps"]
    code = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(['datasets', 'rich', 'expecttest']))\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "print(importlib.import_module('roast_optim.kernels').__file__)"
    )
    # Without site, no installation in development mode is found; packages are, by their folders.
    packages = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
    environment = {**os.environ, "PYTHONPATH": packages}
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent.name == "kernels"


@pytest.mark.slow
def test_tests_that_hang_are_ended_in_time_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(
        "import time\ndef test_good(): pass\ndef test_bad(): assert 1 == 2, 'one is not two'\n"
        "def test_hangs(): time.sleep(300)\n"
    )
    monkeypatch.setattr(kernel_tests, "TESTS_IN_DRY_RUN", (str(file),))
    cpu = Report(tmp_path / "rows", 33.0, dry_run=True)
    kernel_tests.kernel_tests(cpu)
    assert cpu.seconds_left() > 0
    found = {row["what"]: row for row in rows(cpu)}
    assert found["tests"]["figures"]["passed"] == 1
    assert found["tests"]["figures"]["failed"] == 1
    assert any("test_bad" in what and "one is not two" in row["wrong"] for what, row in found.items())
    assert "did not come to their end" in found["end of the tests"]["wrong"]


@pytest.mark.slow
def test_the_dry_run_ends_in_time_with_every_stage_and_its_table_last(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    statuses = {stage["name"]: stage["status"] for stage in found["stages"]}
    assert statuses == {stage.name: "done" for stage in STAGES} | {"memory check": "absent", "counters": "absent"}
    assert done.stdout.endswith((tmp_path / "results.md").read_text())
