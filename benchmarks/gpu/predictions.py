"""What was predicted before any kernel ran on a GPU, to be judged against what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .stage_results import Results

STEP, ENVIRONMENT, COPY = "step, 110M", "environment", "copy"
COPY_RATE = 3.0e3  # GB/s, read and written, of the H100 for which the times were predicted

Figures = Mapping[tuple[str, str], Mapping[str, object]]  # of (stage, what)


@dataclass(frozen=True)
class Prediction:
    """One figure of one row.

    Attributes:
        what: the row of the stage "step, 110M".
        figure: of that row.
        at_most: what it should be at most; None: no such bound.
        at_least: what it should be at least; None: no such bound.
        against: another row whose figure is the bound.
        scales: whether the bound is a time that a slower or faster memory changes in proportion.
    """

    what: str
    figure: str
    at_most: float | None = None
    at_least: float | None = None
    against: str | None = None
    scales: bool = False


def _time(what: str, milliseconds: float) -> Prediction:
    return Prediction(what, "gpu_ms", at_most=milliseconds, scales=True)


# Times are bytes over the copy rate: 37 and 28 bytes per element in float32, 23 and 14 in bfloat16, 109.5M elements.
PREDICTIONS = (
    _time("float32: RoAST", 1.36),
    _time("float32: torch AdamW, fused", 1.03),
    _time("bfloat16: RoAST", 0.84),
    _time("bfloat16: torch AdamW, fused", 0.51),
    Prediction("float32: RoAST", "share_of_copy", at_least=0.90),
    Prediction("bfloat16: RoAST", "share_of_copy", at_least=0.80),
    Prediction("float32: RoAST", "host_ms", against="float32: torch AdamW, fused"),
    Prediction("bfloat16: RoAST", "host_ms", against="bfloat16: torch AdamW, fused"),
)


def judged(results: Results) -> list[tuple[str, str, str, str]]:
    """For every prediction: of what, predicted, measured, and measured over predicted or why it is not judged."""
    figures = {(stage.name, row["what"]): row.get("figures", {}) for stage in results.stages for row in stage.rows}
    return [_judged(prediction, figures, results.dry_run) for prediction in PREDICTIONS]


def _judged(prediction: Prediction, figures: Figures, dry_run: bool) -> tuple[str, str, str, str]:
    what = f"{prediction.what}, {prediction.figure.replace('_', ' ')}"
    bound, said = _bound(prediction, figures)
    value = figures.get((STEP, prediction.what), {}).get(prediction.figure)
    if not isinstance(value, (int, float)):
        return what, said, "not measured", ""
    if bound is None:
        return what, said, f"{value:.3g}", "nothing to compare with"
    verdict = f"{value / bound:.2f} of it" if bound else ""
    if dry_run:
        verdict = "not judged: a dry run"
    elif (prediction.at_least is not None and value < bound) or (prediction.against is not None and value > bound):
        verdict += ": missed"
    elif prediction.at_most is not None and value > 1.1 * bound:
        verdict += ": missed by more than a tenth"
    return what, said, f"{value:.3g}", verdict


def _bound(prediction: Prediction, figures: Figures) -> tuple[float | None, str]:
    if prediction.against is not None:
        bound = figures.get((STEP, prediction.against), {}).get(prediction.figure)
        return (float(bound) if isinstance(bound, (int, float)) else None), f"at most that of {prediction.against}"
    if prediction.at_least is not None:
        return prediction.at_least, f"at least {prediction.at_least:g}"
    assert prediction.at_most is not None
    rate = figures.get((ENVIRONMENT, COPY), {}).get("GB_per_s")
    if not prediction.scales or not isinstance(rate, (int, float)):
        return prediction.at_most, f"{prediction.at_most:g} at {COPY_RATE:g} GB/s"
    bound = prediction.at_most * COPY_RATE / rate
    return bound, f"{prediction.at_most:g} at {COPY_RATE:g} GB/s: {bound:.3g} at this card's"
