"""`python -m benchmarks.pages` writes the measured tables of README.md and docs/, and their pictures, from the records.

With names of tables it prints those instead. A table stands in a page between `<!-- table: NAME -->` and
`<!-- end of table -->`; nothing that was measured stands elsewhere in a page.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from roast_optim.evaluation.pictures import BLUE, save
from roast_optim.masking import keep_probabilities

from .robustness import findings_tables
from .robustness.markdown import header, row_of

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
BENCHMARKS = Path(__file__).parent / "kernels" / "results" / "benchmarks.json"
BLOCK = re.compile(r"<!-- table: ([\w-]+) -->\n.*?<!-- end of table -->", re.DOTALL)
CURVES = ((0.9, 10.0), (0.9, 1.0), (0.6, 10.0), (0.6, 1.0))  # of alpha and beta: the corners of the paper's grid
PASSES, STEP = "forward and backward, MiniLM, 16 x 64 tokens", "step, 110M"
FUSED = "torch AdamW, fused"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or print tables."""
    names = sys.argv[1:] if arguments is None else arguments
    if unknown := [name for name in names if name not in TABLES]:
        print(f"no table is called {', '.join(unknown)}; known: {', '.join(TABLES)}", file=sys.stderr)
        return 2
    for name in names:
        print(TABLES[name]())
    if not names:
        for page in pages():
            page.write_text(written(page.read_text()))
        draw(PICTURES)
    return 0


def pages() -> Iterator[Path]:
    """The pages that may have tables."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def written(page: str) -> str:
    """A page with its tables as they are now."""
    return BLOCK.sub(lambda found: block(found[1]), page)


def block(name: str) -> str:
    """A table with its marks, and the command that prints it."""
    told = f"Printed by `python -m benchmarks.pages {name}`."
    return f"<!-- table: {name} -->\n{TABLES[name]()}\n\n{told}\n<!-- end of table -->"


def measured(what: str, candidate: str, against: str) -> dict[str, Any]:
    """What a benchmark noted of a candidate against another, on a CPU: the ratio and its quartiles."""
    for benchmark in json.loads(BENCHMARKS.read_text())["benchmarks"]:
        row = benchmark["extra_info"]
        if (row["what"], row["candidate"], row["device"]) == (what, candidate, "cpu"):
            found: dict[str, Any] = row["opponents"][against]
            return found
    raise LookupError(f"{BENCHMARKS} has no {what}: {candidate}")


def adversary_ratios() -> dict[str, dict[str, Any]]:
    """Of forward and backward with the adversary to those of plain training."""
    return {
        f'gradient="{gradient}"': measured(PASSES, f'RoAST, gradient="{gradient}"', "plain step")
        for gradient in ("exact", "fast")
    }


def cost() -> str:
    exact, fast = (each["ratio"] for each in adversary_ratios().values())
    step = measured(STEP, "native (avx512)", FUSED)["ratio"]
    every = measured(STEP, "native, importance_every=4", FUSED)["ratio"]
    lines = [
        header("what", "times plain fine-tuning", "cheaper"),
        row_of("forward and backward with the adversary", f"{exact:.2f}", f'{fast:.2f} with `gradient="fast"`'),
        row_of("step of the optimizer, 110M parameters", f"{step:.2f}", f"{every:.2f} with `importance_every=4`"),
        row_of("memory of the optimizer", "5 bytes more per parameter of a block", "3 with `importance_dtype`"),
    ]
    return "\n".join(lines)


def shares() -> str:
    """How many selective elements a step updates."""
    lines = [header("alpha", "beta", "least important", "most important", "updated in a step")]
    for alpha, beta in CURVES:
        found = keep_probabilities(alpha, beta)
        cells = (found[0], found[-1], found.mean())
        lines.append(row_of(f"{alpha:g}", f"{beta:g}", *(f"{100 * float(each):.1f}%" for each in cells)))
    return "\n".join(lines)


TABLES = {**findings_tables.TABLES, "cost": cost, "keep-probabilities": shares}


def draw(folder: Path) -> None:
    """All pictures that come from records or from the package."""
    findings_tables.draw(folder)
    draw_keep_probabilities(folder / "keep-probability.png")
    draw_costs(folder / "cost.png")


def draw_keep_probabilities(path: Path) -> None:
    """The keep probability over the rank of importance."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    panel = figure.subplots()
    for (alpha, beta), style in zip(CURVES, ("-", "--", "-.", ":"), strict=True):
        found = keep_probabilities(alpha, beta)
        ranks = [(code + 0.5) / len(found) for code in range(len(found))]
        panel.plot(ranks, found.tolist(), style, label=f"alpha {alpha:g}, beta {beta:g}")
    panel.set(xlabel="percentile rank of importance", ylabel="keep probability", xlim=(0, 1), ylim=(0, 1))
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    save(figure, path)


def draw_costs(path: Path) -> None:
    """Time of forward and backward with the adversary, as a multiple of plain training's."""
    found = adversary_ratios()
    figure = Figure(figsize=(5.6, 1.7), layout="constrained")
    panel = figure.subplots()
    names = ["plain fine-tuning", *(f"adversary, {name}" for name in found)]
    panel.barh(names, [1.0, *(each["ratio"] for each in found.values())], color=BLUE)
    for place, each in enumerate(found.values(), 1):
        panel.plot([each["lower_quartile"], each["upper_quartile"]], [place, place], color="black", linewidth=1)
        panel.text(0.05, place, f"{each['ratio']:.2f}", color="white", va="center", fontsize=9)
    panel.invert_yaxis()
    panel.set_xlabel("time of forward and backward / plain (line: quartiles)", fontsize=9)
    panel.tick_params(labelsize=9)
    save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
