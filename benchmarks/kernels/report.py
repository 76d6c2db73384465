"""From pytest-benchmark's JSON to Markdown tables, with what must be shown, and a chart.

python -m benchmarks.kernels.report [JSON ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .chart import draw_chart
from .pairs import COPY
from .targets import TARGETS, Target

RESULTS = Path(__file__).parent / "results"
JSON, TABLE, CHART = "benchmarks.json", "benchmarks.md", "step.png"

Row = dict[str, Any]  # what a benchmark noted in its extra_info; see pairs.compare

_NOTES = """\
Everything is measured in turn, A B A B ..., in one process; a ratio is the median over the turns, in brackets its
quartiles. *Bytes* are those of the tensors that one call has to read plus those that it has to write; *of copy* is the
share of the bandwidth that `Tensor.copy_` of as many bytes reached in the same turns. It can exceed 100%: a copy also
fetches the memory that it overwrites, which is not counted. *Extra memory* is the peak during one call beyond what was
there before. How far a ratio can be trusted is shown by the fused AdamW against itself.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables and the chart, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.report", description=main.__doc__)
    parser.add_argument("json", nargs="*", type=Path, default=[RESULTS / JSON], help="what pytest-benchmark wrote")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="where tables and chart go")
    options = parser.parse_args(arguments)
    if missing := [str(file) for file in options.json if not file.exists()]:
        parser.error(f"there is no {', '.join(missing)}: run the benchmarks first, with --benchmark-json")
    contents = [json.loads(file.read_text()) for file in options.json]
    rows = [benchmark["extra_info"] for content in contents for benchmark in content["benchmarks"]]
    text = report(rows, [content["machine_info"] for content in contents])
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / TABLE).write_text(text)
    draw_chart(options.output / CHART, rows)
    print(text)
    return 0


def report(rows: Sequence[Row], machines: Iterable[dict[str, Any]]) -> str:
    """The tables as Markdown: what must be shown, everything measured, and what was not and why."""
    measured = [cells for row in rows for cells in measured_cells(row)]
    sections = [
        "# Speed and memory of the kernels",
        "\n".join(dict.fromkeys(machine_line(each) for each in machines)),
        markdown(("what", "measured", "at most", "aim", "met?"), [target_cells(target, rows) for target in TARGETS]),
        _NOTES.rstrip(),
        markdown(("what", "candidate", "time", "against", "ratio", "bytes", "of copy", "extra memory"), measured),
    ]
    if reasons := reasons_of(rows):
        sections.append(markdown(("not measured here", "because"), [(names, why) for why, names in reasons.items()]))
    return "\n\n".join(sections) + "\n"


def target_cells(target: Target, rows: Sequence[Row]) -> tuple[str, ...]:
    """A line of the table of targets."""
    against = f" / {target.against}" if target.against else ""
    what = f"{target.what}: {target.candidate}{against}"
    limits = (figure(target, target.at_most), figure(target, target.aim))
    found = answers(target, rows)
    values = [each for each in found if isinstance(each, float)]
    if not values:
        return (what, f"not measured: {found[0] if found else 'there is no such row'}", *limits, "-")
    met = "aim reached" if values[0] <= target.aim else "yes" if values[0] <= target.at_most else "**no**"
    return (what, figure(target, values[0]), *limits, met)


def answers(target: Target, rows: Sequence[Row]) -> list[float | str]:
    """The figure in each row of that name, or why there is none."""
    found: list[float | str] = []
    for row in rows:
        if (row["what"], row["candidate"], row["device"]) != (target.what, target.candidate, "cpu"):
            continue
        if "not_measured" in row:
            found.append(row["not_measured"])
        elif target.quantity == "ratio":
            found += [other["ratio"] for name, other in row["opponents"].items() if name == target.against]
        elif target.quantity in row:
            found.append(float(row[target.quantity]))
    return found


def measured_cells(row: Row) -> Iterator[tuple[str, ...]]:
    """A line for each opponent of the row but the copy."""
    if "not_measured" in row:
        return
    opponents = {name: other for name, other in row.get("opponents", {}).items() if name != COPY}
    for name, other in (opponents or {"": None}).items():
        yield (
            row["what"] + (" (GPU)" if row["device"] == "cuda" else ""),
            row["candidate"],
            seconds(row["seconds"]) if "seconds" in row else "",
            f"{name}, {seconds(other['seconds'])}" if other else "",
            "{} [{}, {}]".format(*map(ratio, (other["ratio"], other["lower_quartile"], other["upper_quartile"])))
            if other
            else "",
            amount(row["bytes_moved"]) if "bytes_moved" in row else "",
            f"{row['copy_share']:.0%}" if "copy_share" in row else "",
            amount(row["extra_bytes"]) if "extra_bytes" in row else "",
        )


def reasons_of(rows: Sequence[Row]) -> dict[str, str]:
    """Reason -> the rows that it kept from being measured."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "not_measured" in row:
            reasons.setdefault(row["not_measured"], []).append(f"{row['what']}: {row['candidate']} ({row['device']})")
    return {reason: "<br>".join(names) for reason, names in reasons.items()}


def machine_line(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
    processor = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    native = machine["instruction_set"] and f"native: {machine['instruction_set']}"
    return "; ".join(part for part in (processor, native, machine["gpu"], machine["system"], versions) if part)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def figure(target: Target, value: float) -> str:
    return {"ratio": ratio, "seconds": seconds, "extra_bytes": amount}[target.quantity](value)


def ratio(value: float) -> str:
    return f"1/{1 / value:.3g}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.3g}"


def seconds(value: float) -> str:
    return scaled(value, {1.0: "s", 1e-3: "ms", 1e-6: "µs"})


def amount(value: float) -> str:
    return scaled(value, {1e9: "GB", 1e6: "MB", 1e3: "kB"})


def scaled(value: float, units: dict[float, str]) -> str:
    scale = next((scale for scale in units if value >= scale), min(units))
    return f"{value / scale:.3g} {units[scale]}"


if __name__ == "__main__":
    sys.exit(main())
