"""What a trained model predicts on every set of a suite: all that scores are computed from, and how it is kept.

A run's predictions lie beside its record as NAME.npz: float16 logits per set, and the character swaps of the texts that
were attacked. With the data at hand every score can be computed from them anew, and any new score too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy
import torch
from datasets import Dataset
from torch import Tensor

from roast_optim.evaluation.attack import ATTACK, Swap, apply_swaps, attack, swaps_between
from roast_optim.evaluation.classifier import Classifier
from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.files import atomic_write
from roast_optim.evaluation.progress import SILENT, Observer

from .data import EvaluationSet, Suite, sample
from .errors import DivergedError

SWAPS = "swaps"  # key of an archive that is no set's name, since names of files have no colon in front
LARGEST = float(numpy.finfo(numpy.float16).max)


@dataclass(frozen=True)
class Predictions:
    """Logits [rows, labels] by the name of the set, and the swaps in the rows under attack.

    Logits are centred per row, which changes no probability, and rounded to float16: what is scored is what is stored.
    """

    logits: Mapping[str, Tensor]
    swaps: Sequence[Swap] = field(default_factory=tuple)

    def __getitem__(self, name: str) -> Tensor:
        return self.logits[name]


def predict_suite(
    classifier: Classifier, suite: Suite, attack_rows: int = 0, observer: Observer = SILENT
) -> Predictions:
    """Logits on all sets, and on rows of the in-distribution test that our attack changed.

    Args:
        attack_rows: how many rows are attacked, for this very model; 0 for no attack.

    Raises:
        DivergedError: a prediction is not finite.
    """
    sets = {each.name: each for each in (suite.validation, suite.in_distribution, *suite.others)}.values()
    observer.stage("evaluation", len(sets) + (attack_rows > 0))
    logits = {}
    for each in sets:
        logits[each.name] = stored(classifier.predict(each.texts()), each.name)
        observer.advance()
    if not attack_rows:
        return Predictions(logits)
    chosen = replace(suite.in_distribution, rows=sample(suite.in_distribution.rows, attack_rows))
    attacked = attack(classifier.predict, chosen.texts(), chosen.rows["label"][:])
    logits[ATTACK] = stored(classifier.predict(attacked), ATTACK)
    observer.advance()
    return Predictions(logits, swaps_between(chosen.texts(), attacked))


def attacked_set(suite: Suite, attack_rows: int, swaps: Sequence[Swap]) -> EvaluationSet:
    """Rows of the in-distribution test with these swaps, as an adversarial set."""
    rows = sample(suite.in_distribution.rows, attack_rows)
    return with_swaps(replace(suite.in_distribution, name=ATTACK, role="adversarial", rows=rows), swaps)


def with_swaps(clean: EvaluationSet, swaps: Sequence[Swap]) -> EvaluationSet:
    """The set with swaps in its texts."""
    texts = apply_swaps(clean.texts(), swaps)
    columns = [name for name in clean.rows.column_names if name != "label"]
    changed = dict(zip(columns, map(list, zip(*texts, strict=True)), strict=True))
    rows = Dataset.from_dict({name: changed.get(name) or clean.rows[name][:] for name in clean.rows.column_names})
    return replace(clean, rows=rows)


def stored(logits: Tensor, name: str) -> Tensor:
    """The logits as they are stored: centred, rounded to float16; float32 again.

    Raises:
        DivergedError: they are not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        rows = int((~torch.isfinite(logits)).any(-1).sum())
        raise DivergedError(
            f"{rows} of {len(logits)} predictions on {name!r} are not finite; give a smaller learning rate"
        )
    centred = logits.double() - logits.double().mean(-1, keepdim=True)
    return centred.clamp(-LARGEST, LARGEST).half().float()


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write an archive, atomically."""
    arrays: dict[str, Any] = {name: values.half().numpy() for name, values in predictions.logits.items()}
    arrays[f":{SWAPS}"] = numpy.array(predictions.swaps, dtype=numpy.int32).reshape(-1, len(Swap._fields))
    with atomic_write(path) as file:
        numpy.savez_compressed(file, allow_pickle=False, **arrays)


def load_predictions(path: Path) -> Predictions:
    """Read an archive.

    Raises:
        UserError: it does not exist, or is none.
    """
    try:
        with numpy.load(path, allow_pickle=False) as archive:
            logits = {name: torch.from_numpy(archive[name]).float() for name in archive.files if name[0] != ":"}
            swaps = [Swap(*map(int, row)) for row in archive[f":{SWAPS}"]]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{path}: no predictions of a run ({type(error).__name__})") from None
    return Predictions(logits, swaps)
