"""What a study advises, in words: it says no more than the intervals over the seeds do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from roast_optim.evaluation.scores import PERSPECTIVES

from .markdown import mean_seconds
from .names import title_of
from .runs import Row
from .sources.files import OWN_DATA
from .summary import ERROR_RATE, Interval, improvement_interval

Runs = Mapping[int, Row]  # of one method, by seed
PLAIN = "plain"
# Points by which another seed moves a method's average gain, one standard deviation: docs/questions/one_seed.md.
SEED_SPREAD = 4


def recommendation(rows: Sequence[Row]) -> str:
    """Which method to take, of those that ran, and what speaks for it.

    A method is shown to beat another if the interval of its relative improvement, averaged over the columns, lies above
    zero. The level is raised with the number of methods (Bonferroni), so that one that beats plain fine-tuning by
    chance is named in 5% of such studies, however many methods they have. Of the methods that are shown to beat plain
    fine-tuning, the cheapest is recommended that no other of them is shown to beat.
    """
    runs: dict[str, dict[int, Row]] = {}
    for row in rows:
        runs.setdefault(row["method"], {})[row["seed"]] = row
    where = "on your data" if rows[0]["task"] == OWN_DATA else "on this data"
    plain, others = runs.get(PLAIN, {}), {name: mine for name, mine in runs.items() if name != PLAIN}
    if not plain or not others:
        missing = "other methods" if plain else "plain fine-tuning"
        return f"There is no recommendation without {missing} to compare with: add to --methods."
    error_rate = ERROR_RATE / len(others)
    gains = {name: improvement_interval(mine, plain, error_rate=error_rate) for name, mine in others.items()}
    judged = {name: gain for name, gain in gains.items() if gain is not None and gain.low is not None}
    if not judged:
        return unjudged(gains)
    better = [name for name, gain in judged.items() if is_above_zero(gain)]
    sentences = advice(better, judged, runs, error_rate, where)
    worse = [name for name, gain in judged.items() if gain.high is not None and gain.high < 0]
    if worse:
        sentences.append(f"Shown to be worse than plain fine-tuning: {listed(worse, judged)}.")
    counts = " or ".join(map(str, sorted({len(mine) for mine in runs.values()})))
    sentences.append(
        f"Intervals of {100 * (1 - error_rate):.4g}%, over {counts} seeds on the same rows: of how much of plain "
        "fine-tuning's distance to the best value is closed, averaged over the columns."
    )
    return " ".join(sentences)


def advice(
    better: Sequence[str], gains: Mapping[str, Interval], runs: Mapping[str, Runs], error_rate: float, where: str
) -> list[str]:
    """Which method to take, given those that are shown to beat plain fine-tuning."""
    if not better:
        nearest = max(gains, key=lambda name: gains[name].value)
        return [
            f"No method is shown to beat plain fine-tuning {where}: stay with it.",
            f"The best of the others is {listed([nearest], gains)}.",
        ]
    unbeaten = [name for name in better if not any(beats(other, name, runs, error_rate) for other in better)]
    chosen = min(unbeaten or better, key=lambda name: mean_seconds(runs[name]))
    sentences = [
        f"Fine-tune with {title_of(chosen)}: it is shown to beat plain fine-tuning {where}, by "
        f"{as_text(gains[chosen])}, for {cost(chosen, runs)} times the seconds."
    ]
    if rivals := [name for name in better if name != chosen]:
        shown = "; ".join(f"{listed([name], gains)} for {cost(name, runs)} times the seconds" for name in rivals)
        sentences.append(
            f"So are others, of which none is shown to beat {title_of(chosen)} as well or costs less: {shown}."
        )
    for each in PERSPECTIVES:
        gain = improvement_interval(runs[chosen], runs[PLAIN], (each,), error_rate)
        if gain is not None and gain.high is not None and gain.high < 0:
            sentences.append(f"In one column it is shown to be worse, {each.title}: {as_text(gain)}.")
    return sentences


def unjudged(gains: Mapping[str, Interval | None]) -> str:
    """What is said where no gain has an interval."""
    if any(gain is not None for gain in gains.values()):
        return (
            f"One seed does not tell a method from its luck: another one moves the average by {SEED_SPREAD} points up "
            "or down, and more on few rows. Run --seeds 5 or more. Until then no method is shown to beat plain "
            "fine-tuning: stay with it."
        )
    return "No method has a seed in common with plain fine-tuning, or plain fine-tuning leaves nothing to improve."


def beats(name: str, other: str, runs: Mapping[str, Runs], error_rate: float) -> bool:
    """Whether a method is shown to beat another."""
    gain = improvement_interval(runs[name], runs[other], error_rate=error_rate) if name != other else None
    return gain is not None and is_above_zero(gain)


def is_above_zero(gain: Interval) -> bool:
    return gain.low is not None and gain.low > 0


def cost(name: str, runs: Mapping[str, Runs]) -> str:
    """The seconds of a method's training, plain fine-tuning's being 1."""
    return f"{mean_seconds(runs[name]) / mean_seconds(runs[PLAIN]):.1f}"


def listed(names: Sequence[str], gains: Mapping[str, Interval]) -> str:
    return ", ".join(f"{title_of(name)} ({as_text(gains[name])})" for name in names)


def as_text(gain: Interval) -> str:
    assert gain.low is not None
    assert gain.high is not None
    return f"{100 * gain.value:+.1f}%, {100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
