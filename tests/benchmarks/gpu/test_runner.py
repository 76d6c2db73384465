"""The command survives its stages, its budget and its own end, and keeps what was found out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import runner
from benchmarks.gpu.plan import STAGES, Stage
from benchmarks.gpu.runner import Runner
from benchmarks.gpu.stage_results import BAD, JSON, LOG, ROWS, TABLE, Results, read_rows

MakeStage = Callable[..., Stage]

PREAMBLE = """\
import json, os, subprocess, sys, time
rows = open(sys.argv[sys.argv.index("--rows") + 1], "a")
def found(what, **rest):
    rows.write(json.dumps({"what": what, **rest}) + "\\n")
    rows.flush()
"""
GOOD = "found('answer', figures={'number': 42})"


@pytest.fixture
def stage(tmp_path: Path) -> MakeStage:
    """Make a stage from the Python code of its program."""

    def make(name: str, code: str, limit: float = 30.0) -> Stage:
        file = tmp_path / f"{name}.py"
        file.write_text(PREAMBLE + code)
        return Stage(name, limit, (str(file),))

    return make


def run(stages: list[Stage], folder: Path, budget: float = 100.0) -> Results:
    return Runner(stages, folder, budget=budget).run()


def saved(folder: Path) -> dict[str, Any]:
    """What a reader of the folder finds, by the stage's name."""
    return {each["name"]: each for each in json.loads((folder / JSON).read_text())["stages"]}


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("raise RuntimeError('the kernel is broken')", "failed", "RuntimeError: the kernel is broken"),
        ("found('before'); raise RuntimeError('broken')", "failed", "RuntimeError: broken"),
        ("", "failed", "it reported nothing: it printed nothing"),
        ("print('hello')", "failed", "it reported nothing: hello"),
        ("os.kill(os.getpid(), 11)", "failed", "exit status -11"),
        ("found('masks', wrong='they differ')", "failed", "masks: they differ"),
        ("found('tool', absent='it is not installed')", "absent", "it is not installed"),
        ("found('tool', absent='not installed'); found('other', figures={})", "done", ""),
        ("rows.write('no row at all'); rows.close()", "failed", "it reported nothing"),
    ],
)
def test_what_becomes_of_a_stage_is_recorded_and_the_next_one_runs(
    stage: MakeStage, tmp_path: Path, code: str, status: str, reason: str
) -> None:
    run([stage("first", code), stage("second", GOOD)], tmp_path / "out")
    found = saved(tmp_path / "out")
    assert found["first"]["status"] == status
    assert reason in found["first"]["reason"]
    assert found["second"]["status"] == "done"
    assert found["second"]["rows"] == [{"what": "answer", "figures": {"number": 42}}]
    assert reason.splitlines()[:1] == [] or reason in (tmp_path / "out" / TABLE).read_text()


def test_a_stage_that_hangs_is_ended_with_all_its_processes_and_keeps_what_it_found(
    stage: MakeStage, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    code = f"""
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
{GOOD}
time.sleep(60)
"""
    began = time.monotonic()
    run([stage("hangs", code, limit=2.0), stage("next", GOOD)], tmp_path / "out")
    assert time.monotonic() - began < 30
    found = saved(tmp_path / "out")
    assert found["hangs"]["status"] == "timed out"
    assert found["hangs"]["reason"] == "ended after 2 s"
    assert [row["what"] for row in found["hangs"]["rows"]] == ["answer"]
    assert found["next"]["status"] == "done"
    wait_for(lambda: not any(map(is_alive, map(int, pids.read_text().split()))))


def test_what_a_stage_leaves_running_is_ended_before_the_next(stage: MakeStage, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"""
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(pid)!r}, "w").write(str(child.pid))
{GOOD}
"""
    results = run([stage("leaves", code)], tmp_path / "out")
    assert results.stages[0].status == "done"
    wait_for(lambda: not is_alive(int(pid.read_text())))


def test_stages_get_what_the_budget_leaves_and_are_skipped_when_nothing_is_left(
    stage: MakeStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LEAST", 1.0)
    hangs = "time.sleep(60)"
    began = time.monotonic()
    run([stage("long", hangs, limit=50.0), stage("late", GOOD), stage("later", GOOD)], tmp_path / "out", budget=4.0)
    assert time.monotonic() - began < 30
    found = saved(tmp_path / "out")
    assert found["long"]["status"] == "timed out"
    assert found["long"]["reason"] == "ended after 2 s, all that the budget left of 50"
    for name in ("late", "later"):
        assert found[name]["status"] == "skipped"
        assert found[name]["reason"] == "the budget of 4 s is used up"
        assert found[name]["limit"] is None


def test_a_stage_knows_how_many_seconds_it_has(stage: MakeStage, tmp_path: Path) -> None:
    code = "found('seconds', figures={'seconds': float(sys.argv[sys.argv.index('--seconds') + 1])})"
    results = run([stage("short", code, limit=9.0), stage("rest", code, limit=float("inf"))], tmp_path / "out")
    seconds = [each.rows[0]["figures"]["seconds"] for each in results.stages]
    assert seconds[0] == 9.0
    assert 80 < seconds[1] < 100


def test_results_are_rewritten_before_and_after_each_stage(stage: MakeStage, tmp_path: Path) -> None:
    out = tmp_path / "out"
    look = f"found('seen', figures={{}}, seen=[s['status'] for s in json.load(open({str(out / JSON)!r}))['stages']])"
    results = run([stage(name, look) for name in ("a", "b", "c")], out)
    assert [each.rows[0]["seen"] for each in results.stages] == [
        ["running", "pending", "pending"],
        ["done", "running", "pending"],
        ["done", "done", "running"],
    ]
    assert {file.name for file in out.iterdir()} == {JSON, TABLE, LOG}


def test_an_earlier_run_in_the_same_folder_leaves_no_rows(stage: MakeStage, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ROWS).write_text('{"what": "old"}\n')
    assert run([stage("new", GOOD)], out).stages[0].rows == [{"what": "answer", "figures": {"number": 42}}]


def test_the_log_has_the_output_of_every_stage(stage: MakeStage, tmp_path: Path) -> None:
    run([stage("one", "print('first words'); " + GOOD), stage("two", "print('last words')")], tmp_path / "out")
    log = (tmp_path / "out" / LOG).read_text()
    assert log.index("===== one") < log.index("first words") < log.index("===== two") < log.index("last words")


def test_the_interpreter_is_chosen_by_the_command_alone(
    stage: MakeStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "found('is', figures={'interpreted': os.environ.get('TRITON_INTERPRET', 'no')}, dry='--dry-run' in sys.argv)"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for dry_run, interpreted in ((False, "no"), (True, "1")):
        results = Runner([stage("env", code)], tmp_path / "out", budget=100.0, dry_run=dry_run).run()
        assert results.stages[0].rows == [{"what": "is", "figures": {"interpreted": interpreted}, "dry": dry_run}]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ending_the_command_in_the_middle_leaves_readable_results(
    stage: MakeStage, tmp_path: Path, number: signal.Signals
) -> None:
    out, ready, pid = tmp_path / "out", tmp_path / "ready", tmp_path / "pid"
    code = f"open({str(pid)!r}, 'w').write(str(os.getpid())); {GOOD}; open({str(ready)!r}, 'w'); time.sleep(60)"
    programs = [stage("first", GOOD), stage("second", code), stage("third", GOOD)]
    driver = (
        # Whoever is started in the background of a shell ignores interrupts, and so would this.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pathlib import Path; from benchmarks.gpu.plan import Stage; from benchmarks.gpu.runner import Runner; "
        "stages = [Stage(Path(each).stem, 60.0, (each,)) for each in sys.argv[2:]]; "
        "Runner(stages, Path(sys.argv[1]), budget=100.0).run()"
    )
    command = [sys.executable, "-c", driver, str(out), *(each.program[0] for each in programs)]
    process = subprocess.Popen(command, cwd=runner.ROOT, start_new_session=True)
    try:
        wait_for(ready.exists)
        process.send_signal(number)
        process.wait(30)
        found = saved(out)
        assert found["first"]["status"] == "done"
        assert found["first"]["rows"] == [{"what": "answer", "figures": {"number": 42}}]
        assert "| first | answer |" in (out / TABLE).read_text()
        if number == signal.SIGKILL:  # the row of the stage that ran is still where it wrote it
            assert [found[name]["status"] for name in ("second", "third")] == ["running", "pending"]
            assert [row["what"] for row in read_rows(out / ROWS)] == ["answer"]
        else:
            assert [found[name]["status"] for name in ("second", "third")] == ["interrupted", "skipped"]
            assert [row["what"] for row in found["second"]["rows"]] == ["answer"]
            wait_for(lambda: not is_alive(int(pid.read_text())))
    finally:
        for each in (process.pid, int(pid.read_text())):
            if is_alive(each):
                os.kill(each, signal.SIGKILL)


def test_a_half_written_row_does_not_hide_those_before_it(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text('{"what": "whole", "figures": {}}\n[1, 2]\n{"no": "what"}\n{"what": "ha')
    assert read_rows(file) == [{"what": "whole", "figures": {}}]
    assert read_rows(tmp_path / "nowhere") == []


def test_every_stage_of_the_command_is_a_program_with_a_limit() -> None:
    assert len({each.name for each in STAGES}) == len(STAGES)
    for each in STAGES:
        flag, module = each.program
        assert flag == "-m"
        assert (runner.ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    # All stages with limits of their own, and half a minute of the last one, fit in the default budget.
    assert sum(each.limit for each in STAGES[:-1]) + 30 <= 480


def test_a_failed_stage_is_an_exit_status(
    stage: MakeStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.gpu import __main__ as command

    assert set(BAD) == {"failed", "timed out", "interrupted"}
    for code, status in ((GOOD, 0), ("raise ValueError", 1)):
        monkeypatch.setattr(command, "STAGES", [stage("only", code)])
        assert command.main(["--output", str(tmp_path / "out")]) == status
        assert capsys.readouterr().out.endswith((tmp_path / "out" / TABLE).read_text())
    for wrong in (["--output", "x", "--budget", "0"], ["--output", "x", "--only", "nonsense"], []):
        with pytest.raises(SystemExit):
            command.main(wrong)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)
