"""The tables and the chart that are made of a JSON of pytest-benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kernels.report import CHART, TABLE, main, target_cells
from benchmarks.kernels.targets import Target

FUSED = "torch AdamW, fused"
TARGET = Target("step, 25M", "native (avx512)", "ratio", at_most=1.4, aim=1.2, against=FUSED)
MACHINE = {
    "cpu": "Some Processor", "cores": 2, "threads": 2, "instruction_set": "avx512", "gpu": None,
    "system": "Linux x86_64", "versions": {"python": "3.11.7", "torch": "2.13.0"},
}  # fmt: skip


def step_row(ratio: float, **changes: Any) -> dict[str, Any]:
    opponent = {"seconds": 0.05, "ratio": ratio, "lower_quartile": ratio - 0.1, "upper_quartile": ratio + 0.1}
    opponents = {FUSED: opponent, "copy": {**opponent, "ratio": 0.8}}
    row = {"what": "step, 25M", "candidate": "native (avx512)", "device": "cpu", "seconds": 0.065, "rounds": 9}
    return {**row, "opponents": opponents, "bytes_moved": 0.917e9, "copy_share": 1.25, **changes}


@pytest.mark.parametrize(("ratio", "met"), [(1.1, "aim reached"), (1.3, "yes"), (1.5, "**no**")])
def test_a_target_is_met_or_not(ratio: float, met: str) -> None:
    cells = target_cells(TARGET, [step_row(ratio)])
    assert cells == (f"step, 25M: native (avx512) / {FUSED}", f"{ratio:.2f}", "1.40", "1.20", met)


def test_a_target_without_a_figure_says_why() -> None:
    impossible = {"what": "step, 25M", "candidate": "native (avx512)", "device": "cpu", "not_measured": "no compiler"}
    assert target_cells(TARGET, [impossible])[1:] == ("not measured: no compiler", "1.40", "1.20", "-")
    assert target_cells(TARGET, [])[1] == "not measured: there is no such row"


@pytest.mark.parametrize("changes", [{"device": "cuda"}, {"candidate": "native (avx2)"}, {"what": "step, 110M"}])
def test_other_rows_do_not_answer_for_a_target(changes: dict[str, str]) -> None:
    assert target_cells(TARGET, [step_row(1.1, **changes)])[1] == "not measured: there is no such row"


def test_seconds_bytes_and_small_ratios_have_units() -> None:
    row = step_row(1 / 31, extra_bytes=1_500_000)
    assert target_cells(Target("step, 25M", "native (avx512)", "seconds", 0.15, 0.07), [row])[1] == "65 ms"
    assert target_cells(Target("step, 25M", "native (avx512)", "extra_bytes", 16e6, 1e6), [row])[1] == "1.5 MB"
    assert target_cells(TARGET, [row])[1] == "1/31"


def test_report_holds_every_row_of_every_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    reason = {"what": "step, 25M", "candidate": "triton", "device": "cuda", "not_measured": "no CUDA device"}
    memory = {"what": "extra memory of a step, 25M", "candidate": "reference", "device": "cpu", "extra_bytes": 5e6}
    write_json(first, [step_row(1.3), memory, reason])
    write_json(second, [step_row(1.35, candidate="native (avx2)")])
    assert main([str(first), str(second), "--output", str(tmp_path / "results")]) == 0
    text = (tmp_path / "results" / TABLE).read_text()
    assert (
        text.count("Some Processor, 2 cores, 2 threads; native: avx512; Linux x86_64; python 3.11.7, torch 2.13.0") == 1
    )
    for line in (
        f"| step, 25M: native (avx2) / {FUSED} | 1.35 | 1.40 | 1.32 | yes |",
        f"| step, 25M | native (avx512) | 65 ms | {FUSED}, 50 ms | 1.30 [1.20, 1.40] | 917 MB | 125% |  |",
        "| extra memory of a step, 25M | reference |  |  |  |  |  | 5 MB |",
        "| step, 25M: triton (cuda) | no CUDA device |",
    ):
        assert line in text.splitlines()
    assert (tmp_path / "results" / CHART).read_bytes().startswith(b"\x89PNG")


def test_report_of_nothing_measured_has_no_bars_and_no_figures(tmp_path: Path) -> None:
    file = tmp_path / "nothing.json"
    write_json(file, [{"what": "step", "candidate": "native", "device": "cpu", "not_measured": "no compiler"}])
    assert main([str(file), "--output", str(tmp_path)]) == 0
    assert "| step: native (cpu) | no compiler |" in (tmp_path / TABLE).read_text()
    assert (tmp_path / CHART).read_bytes().startswith(b"\x89PNG")


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"machine_info": MACHINE, "benchmarks": [{"extra_info": row} for row in rows]}))
