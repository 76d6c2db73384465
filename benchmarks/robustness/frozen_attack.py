"""`python -m benchmarks.robustness.frozen_attack`: character swaps in a validation set, made once and then kept.

Settings are chosen on them (PROTOCOL.md). Three models are attacked, each on every third row, so that no method is
judged by an attack on itself alone. What is kept are the swaps, not the texts: the data stays where it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from roast_optim.evaluation.arguments import not_negative, positive
from roast_optim.evaluation.attack import Swap, attack, swaps_between
from roast_optim.evaluation.errors import UserError, tell
from roast_optim.evaluation.files import write_json
from roast_optim.evaluation.progress import ProgressBar

from .arguments import add_data
from .data import TASKS, EvaluationSet
from .models import load_classifier
from .packaged_models import MINILM
from .predictions import with_swaps
from .settings import Settings, method_settings
from .sources import load_suite
from .training import train

FOLDER = Path(__file__).parent / "frozen"
ATTACKED = ("plain", "roast", "freelb")
CHANGES = ("learning_rate=5e-5", "precision=bfloat16", "roast.alpha=0.6", "roast.beta=1", "roast.step_size=0.03")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the models, attack them and write the swaps. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness.frozen_attack", description=__doc__)
    add_data(parser)
    add = parser.add_argument
    add("--task", choices=TASKS, default="sentiment", help="what is classified")
    add("--model", metavar="PATH_OR_HUB_ID", default=MINILM, help="as in benchmarks.robustness")
    add("--train-rows", type=positive, metavar="N", default=2000, help="rows that are trained on")
    add("--epochs", type=positive, metavar="N", default=3, help="passes over them")
    add("--rows", type=positive, metavar="N", default=872, help="validation rows that are attacked")
    add("--seed", type=not_negative, metavar="N", default=900, help="of the trainings")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        console.print(f"Written to {freeze(options, console)}")
    except UserError as error:
        return tell(error)
    return 0


def freeze(options: argparse.Namespace, console: Console) -> Path:
    """Attack every third row of the validation set in each of three models; returns the file of the swaps."""
    task = TASKS[options.task]
    suite = load_suite(options.data, task).sampled(options.train_rows, None)
    target = first_rows(suite.validation, options.rows)
    texts, labels = target.texts(), target.rows["label"][:]
    found: list[Swap] = []
    methods = method_settings(Settings(task=task.name, methods=ATTACKED, epochs=options.epochs, changes=CHANGES))
    for place, method in enumerate(methods):
        classifier = load_classifier(options.model, task, Settings.max_length, options.seed)
        with ProgressBar(console, method.name) as bar:
            train(classifier, method.create(task), suite.train, method.recipe, options.seed, bar)
        rows = range(place, len(texts), len(methods))
        mine = [texts[row] for row in rows]
        changed = attack(classifier.predict, mine, [labels[row] for row in rows])
        found += [swap._replace(row=rows[swap.row]) for swap in swaps_between(mine, changed)]
    path = FOLDER / f"{target.name}.json"
    write_json(path, {"set": target.name, "rows": len(texts), "digest": digest(target), "swaps": sorted(found)})
    return path


def first_rows(clean: EvaluationSet, count: int) -> EvaluationSet:
    return replace(clean, rows=clean.rows.select(range(min(count, len(clean.rows)))))


def digest(rows: EvaluationSet) -> str:
    """Of the texts: swaps fit no others."""
    return hashlib.sha256("\n".join("\t".join(texts) for texts in rows.texts()).encode()).hexdigest()[:12]


def frozen(clean: EvaluationSet) -> EvaluationSet:
    """The set with the swaps that were made for it once, as an adversarial set.

    Raises:
        UserError: none were made for it, or its texts are others.
    """
    path = FOLDER / f"{clean.name}.json"
    if not path.is_file():
        raise UserError(f"{path}: no swaps for {clean.name}; python -m benchmarks.robustness.frozen_attack makes them")
    kept = json.loads(path.read_text())
    attacked = first_rows(clean, kept["rows"])
    if digest(attacked) != kept["digest"]:
        raise UserError(f"{path}: the swaps were made for other texts than {clean.name} has now")
    changed = with_swaps(attacked, [Swap(*each) for each in kept["swaps"]])
    return replace(changed, name=f"{clean.name}_attacked", role="adversarial")


if __name__ == "__main__":
    sys.exit(main())
