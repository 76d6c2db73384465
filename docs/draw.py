"""`python docs/draw.py` writes the diagrams of the pages as SVG: flow.svg and step.svg in docs/pictures.

Boxes bring their own light ground, and what lies outside them has colours that can be read on white and on black.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "pictures"
GROUND, EDGE, INK, LINE = "#f6f8fa", "#8c959f", "#1f2328", "#7d8590"
BLUE, RED = "#4f8fd0", "#dd5566"
FONT = "font-family='Helvetica, Arial, sans-serif'"
LINE_HEIGHT = 18


@dataclass(frozen=True)
class Box:
    """A rectangle with lines of text, of which the first is bold."""

    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]

    def left(self) -> tuple[int, int]:
        return self.x, self.y + self.height // 2

    def right(self) -> tuple[int, int]:
        return self.x + self.width, self.y + self.height // 2

    def top(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y

    def bottom(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y + self.height

    def svg(self) -> str:
        first = self.y + (self.height - LINE_HEIGHT * len(self.lines)) / 2 + 13
        parts = [
            f"<rect x='{self.x}' y='{self.y}' width='{self.width}' height='{self.height}' rx='8' fill='{GROUND}' "
            f"stroke='{EDGE}'/>"
        ]
        for number, line in enumerate(self.lines):
            weight = "bold" if number == 0 else "normal"
            parts.append(
                f"<text x='{self.x + self.width / 2:g}' y='{first + LINE_HEIGHT * number:g}' text-anchor='middle' "
                f"font-size='13' font-weight='{weight}' fill='{INK}'>{escape(line)}</text>"
            )
        return "\n".join(parts)


@dataclass
class Diagram:
    """Boxes, arrows and frames, in the order in which they are drawn."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def box(self, x: int, y: int, width: int, height: int, *lines: str) -> Box:
        made = Box(x, y, width, height, lines)
        self.parts.append(made.svg())
        return made

    def arrow(self, *points: tuple[int, int]) -> None:
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(
            f"<polyline points='{path}' fill='none' stroke='{LINE}' stroke-width='1.8' marker-end='url(#head)'/>"
        )

    def label(self, x: int, y: int, text: str, colour: str = LINE, anchor: str = "middle") -> None:
        self.parts.append(
            f"<text x='{x}' y='{y}' text-anchor='{anchor}' font-size='13' fill='{colour}'>{escape(text)}</text>"
        )

    def frame(self, x: int, y: int, width: int, height: int, name: str, *, colour: str, indent: int = 12) -> None:
        self.parts.append(
            f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='12' fill='none' stroke='{colour}' "
            f"stroke-width='1.8' stroke-dasharray='6 4'/>\n"
            f"<text x='{x + indent}' y='{y - 7}' font-size='14' font-weight='bold' fill='{colour}'>"
            f"{escape(name)}</text>"
        )

    def svg(self) -> str:
        return "\n".join(
            [
                f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {self.width} {self.height}' "
                f"width='{self.width}' role='img' {FONT}>",
                f"<title>{escape(self.title)}</title>",
                "<defs><marker id='head' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' "
                f"orient='auto'><path d='M0,0 L10,5 L0,10 z' fill='{LINE}'/></marker></defs>",
                *self.parts,
                "</svg>\n",
            ]
        )


def flow() -> str:
    """What happens to a batch: two passes, one loss, a mask, AdamW."""
    made = Diagram(1010, 260, "A batch passes the model twice; a mask decides which elements AdamW updates")
    made.frame(150, 30, 430, 215, "AdversarialEmbedding", colour=BLUE)
    made.frame(665, 30, 335, 215, "RoastAdamW", colour=RED)
    batch = made.box(15, 110, 105, 60, "batch", "text, labels")
    first = made.box(185, 45, 180, 60, "first pass", "the text as it is")
    second = made.box(185, 150, 180, 80, "second pass", "embeddings moved", "towards a larger loss")
    loss = made.box(415, 100, 145, 80, "one loss", "both passes right,", "and alike")
    mask = made.box(685, 100, 160, 80, "mask", "important elements", "more often")
    step = made.box(885, 110, 100, 60, "AdamW", "step")
    made.arrow(batch.right(), (135, 140), (135, 75), first.left())
    made.arrow(batch.right(), (135, 140), (135, 190), second.left())
    made.arrow(first.bottom(), second.top())
    made.label(285, 132, "gradient", anchor="start")
    made.arrow(first.right(), (390, 75), (390, 125), (415, 125))
    made.arrow(second.right(), (390, 190), (390, 155), (415, 155))
    made.arrow(loss.right(), mask.left())
    made.label(622, 132, "gradient")
    made.arrow(mask.right(), step.left())
    return made.svg()


def step() -> str:
    """From a gradient to a new parameter: what one step reads and writes, and what a refresh makes."""
    made = Diagram(
        980, 400, "One step of RoastAdamW, from gradient to parameter, and the refresh that ranks importance"
    )
    made.frame(15, 30, 950, 215, "step: one kernel, one pass over memory", colour=RED)
    made.frame(15, 285, 950, 100, "refresh: seldom", colour=BLUE, indent=110)
    gradient = made.box(35, 70, 150, 50, "gradient g")
    importance = made.box(35, 165, 150, 60, "importance s", "s + g * g, float32")
    draw = made.box(315, 80, 205, 60, "draw", "Philox(seed, element, step)")
    table = made.box(315, 165, 205, 60, "threshold and 1 / p", "256 entries, by rank code")
    mask = made.box(590, 120, 140, 60, "mask m", "draw < threshold?")
    adamw = made.box(810, 110, 135, 80, "AdamW", "moments, then", "the parameter")
    histogram = made.box(35, 305, 150, 60, "histogram", "65,536 bins of s")
    counts = made.box(325, 305, 185, 60, "sum over processes", "where there are several")
    code = made.box(640, 305, 185, 60, "rank code", "0 to 255, one byte")
    made.arrow(gradient.bottom(), importance.top())
    made.arrow(gradient.top(), (110, 50), (660, 50), mask.top())
    made.arrow(draw.right(), (560, 110), (560, 140), (590, 140))
    made.arrow(table.right(), (560, 195), (560, 160), (590, 160))
    made.arrow(mask.right(), adamw.left())
    made.label(770, 142, "g m / p")
    made.arrow(importance.bottom(), histogram.top())
    made.arrow(histogram.right(), counts.left())
    made.arrow(counts.right(), code.left())
    made.arrow(code.top(), (732, 265), (417, 265), table.bottom())
    made.label(850, 269, "until the next refresh")
    return made.svg()


def main() -> None:
    """Write both."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in (("flow", flow), ("step", step)):
        (FOLDER / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
