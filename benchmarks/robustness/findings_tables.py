"""The tables and pictures of README.md and docs/ that come from recorded runs; see benchmarks/pages.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from roast_optim.evaluation.scores import PERSPECTIVES
from roast_optim.evaluation.tables import percent

from . import pictures
from .findings import (
    BEST_RATE,
    COLUMNS,
    LENGTHS,
    RESULTS,
    SIX,
    TWICE,
    Runs,
    best_plain,
    five,
    gain,
    gains_table,
    methods,
    of_common_seeds,
    on_five_seeds,
    other_plain,
    runs,
    score,
    scores_table,
    value_of,
)
from .markdown import distance_table, groups_table, header, improvements, row_of, worst_group
from .names import title_of
from .summary import improvement_interval, score_interval, set_score_interval


def perspective(title: str) -> tuple[str, ...]:
    """The title that a column has in the study's tables, by its title here."""
    return tuple(one.title for name, one in zip(COLUMNS, PERSPECTIVES, strict=True) if name == title)


def which_method_rows() -> list[tuple[str, str, str, str]]:
    """What is wanted, what to set, what it gave, and what it costs; the cheapest first."""
    plain, other = best_plain(), other_plain()
    pull, roast = runs("wconsol"), runs("roast", step_size=0.1)
    low, short = runs("roast", "sentiment-learning-rate", learning_rate=BEST_RATE), runs("roast", step_size=0.03)
    adversary = runs("advembed")

    def over(mine: Runs, title: str, base: Runs = plain) -> str:
        (column,) = perspective(title)
        chosen = [one for one in PERSPECTIVES if one.title == column]
        return gain(improvement_interval(mine, base, chosen))

    def confidence(mine: Runs) -> str:
        return score(set_score_interval(of_common_seeds(mine), "ece_top_label"))

    def average(mine: Runs, base: Runs = plain) -> str:
        return gain(improvement_interval(mine, base))

    nothing, passes = "nothing", "[the adversary](#cost)"
    return [
        (
            "a better model on average",
            "half the learning rate, with plain AdamW",
            f"average {average(plain, other)}",
            nothing,
        ),
        (
            "texts of no class noticed",
            "`pretrained_decay=100`, the head apart",
            f"anomalies {over(pull, 'anomalies')}, but shifted texts {over(pull, 'shifted texts')}",
            "4 bytes per parameter",
        ),
        (
            "confidences to trust as they are",
            "`AdversarialEmbedding(model)`, with any optimizer",
            f"off by {confidence(adversary)} points; plain {confidence(plain)}, `pretrained_decay` {confidence(pull)}",
            passes,
        ),
        (
            "attacked texts withstood",
            "`AdversarialEmbedding` and `RoastAdamW`, half the learning rate",
            f"attacked texts {over(low, 'attacked texts')}, but accuracy {over(low, 'accuracy')}",
            passes,
        ),
        (
            "the paper's method, all in all",
            "`RoastAdamW(model, alpha=0.6, beta=1)` and `AdversarialEmbedding(model, step_size=0.03)`",
            f"average {average(short)}; with the paper's step {average(roast)}",
            f"{passes} and the mask",
        ),
    ]


def which_method() -> str:
    lines = ["| I want | what to set | what it gave | what it costs |", "|---|---|---|---|"]
    return "\n".join([*lines, *(row_of(*cells) for cells in which_method_rows())])


def six_methods() -> str:
    """Plain fine-tuning at its best rate, and five others by their average."""
    plain, found = best_plain(), methods()
    others = sorted((title_of(name) for name in SIX), key=lambda name: -average_gain(found[name], plain))
    return scores_table({"plain fine-tuning": plain, **{name: found[name] for name in others}}, plain)


def average_gain(mine: Runs, base: Runs) -> float:
    found = improvement_interval(mine, base)
    return found.value if found else float("-inf")


def all_methods() -> str:
    return gains_table(methods(), best_plain())


def chosen_rates() -> str:
    """As the protocol chose the rates: every method over plain fine-tuning at the rate that its own trials chose."""
    return gains_table(five("sentiment"), other_plain())


def rates() -> str:
    """Plain fine-tuning and RoAST at two learning rates, over plain fine-tuning at the lower one."""
    found = methods()
    names = (TWICE, "RoAST", "RoAST at the lower rate")
    plain = best_plain()
    return scores_table({"plain fine-tuning": plain, **{name: found[name] for name in names}}, plain)


def ablations() -> str:
    """RoAST over itself with one thing changed: positive where the part is worth something."""
    roast = runs("roast", step_size=0.1)
    changed = {
        "random importance": runs("roast_random"),
        "nothing rescaled": runs("roast_no_rescaling"),
        "one mask per epoch": runs("roast_mask_per_epoch"),
        'gradient="fast"': runs("roast_fast"),
        "sign of the gradient, as long": runs("roast_sign", step_size=0.033),
        "l2 norm, as long": runs("roast_l2"),
        "word embeddings perturbed": runs("roast_word_table"),
        "words exchanged, not perturbed": runs("roast_word_level"),
        "objective of the authors' code": runs("roast_authors"),
        "shorter step (0.03)": runs("roast", step_size=0.03),
        "no selection (adversary alone)": runs("advembed"),
    }
    lines = [header("changed", *COLUMNS, "average")]
    for name, other in changed.items():
        found = improvements({"roast": roast}, other)["roast"]
        columns = [value_of(found[one.title]) for one in PERSPECTIVES]
        lines.append(row_of(name, *columns, gain(found["Average"])))
    return "\n".join(lines)


def calibration() -> str:
    """Errors of confidences with and without a temperature."""
    plain = {
        "plain fine-tuning": best_plain(),
        TWICE: other_plain(),
    }
    names = ("wconsol", "freelb", "r3f", "smart", "advembed", "selective")
    found = {**plain, **{title_of(name): runs(name) for name in names}, "RoAST": runs("roast", step_size=0.1)}
    lines = [header("method", "as the model says", "with a temperature", "right", "mean confidence")]
    for name, mine in found.items():
        same = of_common_seeds(mine)
        bins = pictures.pooled_bins([*same.values()])
        count = sum(bins.rows)
        errors = [score(set_score_interval(same, key), True) for key in ("ece_top_label", "ece")]
        lines.append(row_of(name, *errors, percent(sum(bins.right) / count), percent(sum(bins.confidence) / count)))
    return "\n".join(lines)


def entailment(folder: str) -> str:
    return gains_table(five(folder), runs("plain", folder))


def entailment_calibration() -> str:
    lines = [header("method", *LENGTHS)]
    for name in ("plain", "advembed", "selective", "wconsol", "roast"):
        cells = [score(set_score_interval(runs(name, folder), "ece_top_label"), True) for folder in LENGTHS.values()]
        lines.append(row_of(title_of(name), *cells))
    return "\n".join(lines)


def entailment_accuracy() -> str:
    """How much was learned: accuracy on the in-distribution set, and of each label after the longer training."""
    labels = ("entailment", "neutral", "contradiction")
    lines = [header("method", *LENGTHS, *(f"{each}, {[*LENGTHS][1]}" for each in labels))]
    for name in ("plain", "advembed", "selective", "wconsol", "roast"):
        found = [runs(name, folder) for folder in LENGTHS.values()]
        accuracies = [score(score_interval(mine, "acc_in")) for mine in found]
        by_label = [percent(mean_of_label(found[-1], each)) for each in labels]
        lines.append(row_of(title_of(name), *accuracies, *by_label))
    return "\n".join(lines)


def mean_of_label(mine: Runs, label: str) -> float:
    """Accuracy of a label, the mean over the sets that have it, and the seeds."""
    found = [
        scores["groups"]["label"][label]
        for row in mine.values()
        for scores in row["per_set"].values()
        if label in scores.get("groups", {}).get("label", {})
    ]
    return float(sum(found) / len(found))


def larger_model() -> str:
    folder = "sentiment-mpnet"
    found = {title_of(name): runs(name, folder) for name in ("plain", "advembed", "roast")}
    return scores_table(found, found[title_of("plain")])


def groups() -> str:
    return groups_table(on_five_seeds())


def worst_groups() -> str:
    lines = [header("method", "worst group")]
    lines += [row_of(title_of(name), percent(worst_group(mine))) for name, mine in on_five_seeds().items()]
    return "\n".join(lines)


def distances() -> str:
    return distance_table({**on_five_seeds(), "plain (lower rate)": best_plain()})


def step_sizes(name: str) -> str:
    """The table of a recorded measurement."""
    text = (RESULTS / "step-sizes" / f"sentiment-{name}-step-sizes.md").read_text()
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


def shorter_steps() -> str:
    """RoAST with two lengths of step, over plain fine-tuning at its best rate."""
    found = methods()
    return gains_table({name: found[name] for name in ("RoAST", "RoAST, shorter step")}, best_plain())


def seed_spread() -> float:
    """The standard deviation of a method's average gain over plain fine-tuning from seed to seed.

    Over the four methods that have five seeds, their variances averaged.
    """
    plain = other_plain()
    variances = []
    for mine in five("sentiment").values():
        gains = [improvement_interval({seed: mine[seed]}, plain) for seed in mine]
        variances.append(statistics.variance(each.value for each in gains if each is not None))
    return float(statistics.mean(variances) ** 0.5)


def one_seed() -> str:
    """The average gain over plain fine-tuning, seed by seed."""
    plain = other_plain()
    seeds = sorted(plain)
    lines = [header("over plain fine-tuning", *(f"seed {seed}" for seed in seeds))]
    for name, mine in five("sentiment").items():
        lines.append(row_of(name, *(value_of(improvement_interval({seed: mine[seed]}, plain)) for seed in seeds)))
    lines.append(row_of("standard deviation", f"{100 * seed_spread():.1f}%", *[""] * (len(seeds) - 1)))
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "which-method": which_method,
    "six-methods": six_methods,
    "all-methods": all_methods,
    "chosen-rates": chosen_rates,
    "two-rates": rates,
    "ablations": ablations,
    "calibration": calibration,
    "entailment-376": lambda: entailment(LENGTHS["376 steps"]),
    "entailment-750": lambda: entailment(LENGTHS["750 steps"]),
    "entailment-calibration": entailment_calibration,
    "entailment-accuracy": entailment_accuracy,
    "larger-model": larger_model,
    "groups": groups,
    "worst-groups": worst_groups,
    "distances": distances,
    "step-sizes-minilm": lambda: step_sizes("all-minilm-l6-v2"),
    "step-sizes-mpnet": lambda: step_sizes("all-mpnet-base-v2"),
    "shorter-steps": shorter_steps,
    "one-seed": one_seed,
}


# ---------------------------------------------------------------------------------------------------------- pictures


def draw(folder: Path) -> None:
    """The pictures of these pages, as PNG files."""
    plain, found = best_plain(), methods()
    shown = {title_of(name): found[title_of(name)] for name in SIX}
    shown["plain, twice the rate"] = found[TWICE]
    gains = improvements(shown, plain)
    ranked = sorted(gains, key=lambda name: -(each.value if (each := gains[name]["Average"]) else 0.0))
    titles = [*(one.title for one in PERSPECTIVES), "Average"]
    named = dict(zip(titles, (*COLUMNS, "average"), strict=True))
    pictures.improvement_bars(
        folder / "six-methods.png",
        {name: {named[title]: each for title, each in gains[name].items()} for name in ranked},
    )
    pictures.reliability_of_runs(
        folder / "reliability.png",
        {
            "plain fine-tuning": [*plain.values()],
            "plain, twice the rate": [*found[TWICE].values()],
            "RoAST": [*found["RoAST"].values()],
        },
    )
