"""What methods are called in tables and pictures; the command and the records know them by shorter names."""

from __future__ import annotations

from collections.abc import Sequence

TITLES = {
    "plain": "plain fine-tuning",
    "advembed": "adversary alone",
    "selective": "selection alone",
    "wconsol": "pull to pre-trained weights",
    "roast": "RoAST",
    "child_tuning_f": "ChildTuning-F",
    "child_tuning_d": "ChildTuning-D",
    "freelb": "FreeLB",
    "smart": "SMART",
    "r3f": "R3F",
    "lp_ft": "head first (LP-FT)",
    "word_dropout": "word dropout",
    "roast_random": "RoAST, random importance",
    "roast_no_rescaling": "RoAST, nothing rescaled",
    "roast_mask_per_epoch": "RoAST, one mask per epoch",
    "roast_fast": "RoAST, fast gradient",
    "roast_sign": "RoAST, sign of the gradient",
    "roast_l2": "RoAST, l2 norm",
    "roast_word_table": "RoAST, word embeddings perturbed",
    "roast_word_level": "RoAST, words exchanged",
    "roast_authors": "RoAST, objective of the authors' code",
}
_COMPARED = ("roast", "advembed", "selective")  # in every chart of few methods, with the best of the others
_BARS = 6


def title_of(label: str) -> str:
    """What a method is called, whose label may go on with settings in brackets, as in "roast (step_size 0.1)"."""
    name, bracket, settings = label.partition(" (")
    return TITLES.get(name, name.replace("_", " ")) + bracket + settings


def few(ranked: Sequence[str]) -> list[str]:
    """At most six of the labels, best first: RoAST and its parts as far as they are there, and the best others.

    Of a method with several labels the first one; of RoAST's ablations, which are for a table, none.
    """
    first: dict[str, str] = {}
    for label in ranked:
        name = label.partition(" (")[0]
        if not name.startswith("roast_"):
            first.setdefault(name, label)
    kept = [name for name in first if name in _COMPARED]
    kept += [name for name in first if name not in _COMPARED][: _BARS - len(kept)]
    return [label for name, label in first.items() if name in kept]
