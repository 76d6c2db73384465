"""The stages find what is wrong, on a CPU, with other backends or made-up tools in the place of the real ones."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import launching, tools
from benchmarks.gpu.report import Report
from benchmarks.gpu.stages import choice, counters, graph, kernel_tests, memory_check, step_110m, step_the_rest
from benchmarks.kernels.contestants import ranked
from roast_optim import RoastAdamW
from tests.benchmarks.gpu.written import rows


def test_what_cannot_be_measured_costs_only_itself(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(report: Report, workload: str, dtype: str, names: object, prefix: str) -> None:
        if dtype == "float32":
            raise torch.OutOfMemoryError("tried to allocate 40 GiB")
        report.measured(f"{workload} {dtype}", gpu_ms=1.0)

    for stage in (step_110m, step_the_rest):
        report.rows.unlink(missing_ok=True)
        monkeypatch.setattr(stage, "compare_steps", compare)
        monkeypatch.setattr(step_the_rest, "refresh", lambda report, workload: report.measured(f"refresh {workload}"))
        getattr(stage, stage.__name__.rpartition(".")[2])(report)
        found = rows(report)
        assert {row["wrong"] for row in found if "wrong" in row} == {"OutOfMemoryError: tried to allocate 40 GiB"}
        assert sum("figures" in row and "wrong" not in row for row in found) >= 1
    assert rows(report)[-1]["what"] == f"refresh {step_the_rest.REFRESHED[-1]}"


# ---------------------------------------------------------------------------------------------------------------- graph


@pytest.fixture
def on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stage's optimizers need no interpreter."""
    monkeypatch.setattr(
        graph, "optimizer_over", lambda parameters, **options: ranked(parameters, backend="reference", **options)
    )


@pytest.mark.usefixtures("on_the_reference")
def test_replays_that_do_nothing_are_found(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    assert graph.differing_tensors(report, "25M", {}, ranked=True) == []
    monkeypatch.setattr(graph, "capture", lambda optimizer, report: lambda: None)
    differing = graph.differing_tensors(report, "25M", {}, ranked=True)
    assert "parameter of parameter 0" in differing
    assert "importance of parameter 0" in differing
    graph.right_or_refused(report, "capturable", {"capturable": False}, ranked=True)
    assert rows(report)[-1]["wrong"].startswith("neither raised nor right")


@pytest.mark.usefixtures("on_the_reference")
@pytest.mark.parametrize(
    ("message", "is_right"), [("set capturable=True", True), ("operation not permitted on this stream", False)]
)
def test_a_refusal_names_what_stands_in_the_way(
    report: Report, monkeypatch: pytest.MonkeyPatch, message: str, is_right: bool
) -> None:
    def capture(optimizer: RoastAdamW, report: Report) -> Callable[[], object]:
        raise RuntimeError(message)

    monkeypatch.setattr(graph, "capture", capture)
    graph.right_or_refused(report, "capturable", {"capturable": False}, ranked=True)
    (row,) = rows(report)
    assert ("wrong" in row) != is_right
    assert report.any_wrong != is_right


# ---------------------------------------------------------------------------------------------------------------- tests

SOME_TESTS = """
import pytest
def test_good(): pass
def test_bad(): assert 1 == 2, "one is not two"
def test_skipped(): pytest.skip("no such device")
@pytest.mark.xfail
def test_expected(): assert False
@pytest.fixture
def broken(): raise RuntimeError("no fixture")
def test_error(broken): pass
"""


def test_every_outcome_is_written_down_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SOME_TESTS)
    (tmp_path / "test_unimportable.py").write_text("import no_such_module")
    file = tmp_path / "outcomes"
    code = kernel_tests.run_pytest(
        [str(tmp_path), "--continue-on-collection-errors"], processes=0, device="cpu", outcomes=file, seconds=60.0
    )
    assert code == 1
    outcomes = [json.loads(line) for line in file.read_text().splitlines()]
    found = {each["test"].rpartition("::")[2].rpartition("/")[2]: each for each in outcomes}
    assert {name: each["outcome"] for name, each in found.items()} == {
        "test_unimportable.py": "error",
        "test_good": "passed",
        "test_bad": "failed",
        "test_skipped": "skipped",
        "test_expected": "xfailed",
        "test_error": "error",
    }
    for name, reason in (("bad", "one is not two"), ("error", "no fixture"), ("unimportable.py", "no_such_module")):
        assert reason in found[f"test_{name}"]["reason"]
    assert len(outcomes) == 6


def test_the_largest_differences_of_all_tests_are_one_row(tmp_path: Path, report: Report) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('units', [2.0, 0.5])\n"
        "def test_values(units, record_property): record_property('units of step, param, float32', units)\n"
        "def test_others(record_property): record_property('units of step, exp_avg, float32', 1.0)\n"
    )
    file = tmp_path / "outcomes"
    code = kernel_tests.run_pytest([str(tmp_path)], processes=0, device="cpu", outcomes=file, seconds=60.0)
    assert code == 0
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert len([each for each in written if "outcome" in each]) == 3
    kernel_tests.say_units(report, [each["units"] for each in written if "units" in each])
    (row,) = rows(report)
    assert row["figures"] == {"step_param_float32": 2.0, "step_exp_avg_float32": 1.0}


@pytest.mark.parametrize(
    ("outcomes", "code", "wrong"),
    [
        (["passed", "failed", "skipped"], 1, {"tests", "test_1"}),
        (["passed", "skipped"], 0, set()),
        (["passed"], None, {"end of the tests"}),
        (["passed"], 3, {"end of the tests"}),
        ([], 4, {"tests", "end of the tests"}),
        (["skipped"], 0, {"tests"}),
    ],
    ids=["failures", "all passed", "killed", "internal error", "nothing collected", "all skipped"],
)
def test_tests_that_failed_or_did_not_run_are_wrong(
    report: Report, outcomes: list[str], code: int | None, wrong: set[str]
) -> None:
    made = [{"test": f"tests/test_{i}", "outcome": each, "reason": ""} for i, each in enumerate(outcomes)]
    kernel_tests.say(report, made, code)
    assert {row["what"] for row in rows(report) if "wrong" in row} == wrong
    assert rows(report)[0]["what"] == "tests"
    assert sum(rows(report)[0]["figures"].values()) == len(outcomes)


# ---------------------------------------------------------------------------------------------------------------- tools


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a program of that name, which prints something, where tools are looked for."""
    monkeypatch.setattr(tools, "FOLDERS", (str(tmp_path / "tools*"),))
    monkeypatch.setenv("PATH", "/nowhere")

    def make(name: str, prints: str, status: int = 0) -> None:
        file = tmp_path / "tools" / name
        file.parent.mkdir(exist_ok=True)
        (tmp_path / "said").write_text(prints)
        file.write_text(f"#!/bin/sh\n/bin/cat '{tmp_path / 'said'}'\nexit {status}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    return make


MEMCHECK = """\
========= COMPUTE-SANITIZER
38 cases
========= Invalid __global__ read of size 4 bytes
=========     at roast_adamw_kernel+0x1230
========= ERROR SUMMARY: {} errors
"""


@pytest.mark.parametrize(
    ("prints", "status", "says"),
    [
        (MEMCHECK.format(0), 0, None),
        (MEMCHECK.format(3), 0, "3 errors: Invalid __global__ read of size 4 bytes"),
        ("========= Error: Device not supported", 1, "ended with status 1 and no result: ========= Error: Device not"),
        ("========= ERROR SUMMARY: 0 errors", 0, "no result"),  # and the program did not come to its end
    ],
)
def test_what_the_memory_check_says(
    report: Report, tool: Callable[..., None], prints: str, status: int, says: str | None
) -> None:
    tool("compute-sanitizer", prints, status)
    memory_check.memory_check(report)
    (row,) = rows(report)
    if says is None:
        assert row["figures"] == {"errors": 0, "cases": 38}
    else:
        assert says in row["wrong"]


HEAD = '"ID","Process ID","Process Name","Host Name","Kernel Name","CC",' + ",".join(
    f'"{metric}"' for metric in counters.METRICS
)
UNITS = '"","","","","","","ns","%","byte","byte","%","%","register/thread"'


def launch(number: int, time: str) -> str:
    figures = (time, "91.5", "2,200,000,000", "1.7e9", "50", "60", "32")
    return ",".join(f'"{value}"' for value in (number, 7, "python", "host", "roast_adamw_kernel", "9.0", *figures))


def test_counters_are_those_of_the_second_step_of_each_dtype(report: Report, tool: Callable[..., None]) -> None:
    times = ("9,000,000", "1,500,000", "9,000,000", "900,000")
    said = ["==PROF== Connected", HEAD, UNITS, *(launch(i, time) for i, time in enumerate(times))]
    tool("ncu", "\n".join(said))
    counters.counters(report)
    expected: Mapping[str, float] = {
        "ms": 1.5, "DRAM_percent": 91.5, "GB_read": 2.2, "GB_written": 1.7, "issue_percent": 50.0,
        "warps_percent": 60.0, "registers": 32.0,
    }  # fmt: skip
    assert [(row["what"], row["figures"]) for row in rows(report)] == [
        ("float32", expected),
        ("bfloat16", {**expected, "ms": 0.9}),
    ]


@pytest.mark.parametrize("launches", [0, 3])
def test_a_profiler_that_saw_other_launches_says_so(report: Report, tool: Callable[..., None], launches: int) -> None:
    tool("ncu", "\n".join([HEAD, UNITS, *(launch(i, "1") for i in range(launches)), "==ERROR== no permission"]), 1)
    counters.counters(report)
    (row,) = rows(report)
    assert f"saw {launches} launches" in row["wrong"]
    assert "==ERROR== no permission" in row["wrong"]


@pytest.mark.usefixtures("tool")
def test_tools_that_are_nowhere_are_absent(report: Report) -> None:
    memory_check.memory_check(report)
    counters.counters(report)
    assert [row["absent"] for row in rows(report)] == ["compute-sanitizer is not found", *["ncu is not found"] * 2]
    assert not report.any_wrong


# --------------------------------------------------------------------------------------------------------------- choice


def test_a_way_of_launching_holds_inside_and_is_gone_afterwards() -> None:
    from roast_optim.kernels.triton import launch as module

    device, now = torch.device("meta"), launching.present()
    way = launching.Launching(warps=2 * now.warps, blocks=now.blocks + 1, elements=2 * now.elements)
    lanes = module.lanes
    try:
        module.lanes = lambda device: 32
        before = module.block_size(device)
        with launching.launched(way):
            assert launching.present() == way
            assert module.block_size(device) == 4 * before
            assert module.OPTIONS["num_warps"] == way.warps
            assert {each.BLOCKS_PER_PROGRAM for each in using_blocks()} == {way.blocks}
        with pytest.raises(KeyError), launching.launched(way):
            raise KeyError
    finally:
        module.lanes = lanes
    assert launching.present() == now
    assert {each.BLOCKS_PER_PROGRAM for each in using_blocks()} == {now.blocks}
    assert module.OPTIONS["num_warps"] == now.warps


def using_blocks() -> list[Any]:
    modules = [each for name, each in sys.modules.items() if name.startswith("roast_optim.kernels.triton.")]
    found = [each for each in modules if hasattr(each, "BLOCKS_PER_PROGRAM")]
    assert found
    return found


def test_other_ways_differ_from_the_present_one_and_from_one_another() -> None:
    now = launching.present()
    others = choice.ways(now)
    assert now not in others
    assert len(set(others)) == len(others) >= 8
    for field in ("warps", "blocks", "elements"):
        assert len({getattr(way, field) for way in others}) >= 3


def test_constants_with_other_names_are_an_error_that_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    from roast_optim.kernels.triton import launch as module

    monkeypatch.delattr(module, "WARPS")
    with pytest.raises(AttributeError, match=r"launch has no WARPS: adapt benchmarks\.gpu\.launching"):
        launching.present()


# --------------------------------------------------------------------------------------------------------------- report


def test_a_figure_that_is_no_number_is_wrong(report: Report) -> None:
    report.measured("rate", GB_per_s=float("inf"))
    assert "not finite" in rows(report)[0]["wrong"]
    assert report.any_wrong
