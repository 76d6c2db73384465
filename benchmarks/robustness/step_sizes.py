"""`python -m benchmarks.robustness.step_sizes`: how strong the adversary is for a model, by the size of its step.

The right step depends on the scale of a model's embeddings. One that changes no prediction adds nothing to plain
fine-tuning, one that changes all of them leaves nothing to be learned. This fine-tunes a model without an adversary and
then perturbs validation rows, before and after.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from roast_optim import AdversarialEmbedding
from roast_optim.evaluation.arguments import not_negative, positive
from roast_optim.evaluation.classifier import PREDICTION_BATCH, Classifier
from roast_optim.evaluation.errors import UserError, tell
from roast_optim.evaluation.files import atomic_write
from roast_optim.evaluation.progress import ProgressBar
from roast_optim.evaluation.tables import percent

from .arguments import add_data, length
from .data import TASKS, EvaluationSet
from .markdown import header, row_of
from .models import load_classifier
from .packaged_models import MINILM
from .settings import Settings, method_settings
from .sources import load_suite
from .training import train

STEP_SIZES = (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Effect:
    """What a perturbation does to a model's predictions, means over rows.

    Attributes:
        relative_length: length of a token's perturbation, divided by that of its embedding; both L2.
        loss, perturbed_loss: the task loss without and with it.
        accuracy, perturbed_accuracy: fractions of 1.
    """

    step_size: float
    relative_length: float
    loss: float
    perturbed_loss: float
    accuracy: float
    perturbed_accuracy: float


def measure_effect(classifier: Classifier, rows: EvaluationSet, step_size: float) -> Effect:
    """Perturb the output of the embedding block for labelled rows, without dropout; the model does not change."""
    adversary = AdversarialEmbedding(classifier.model, step_size=step_size)
    encoded = zip(classifier.encode(rows.texts()), rows.rows["label"][:], strict=True)
    features = [{**each, "labels": label} for each, label in encoded]
    totals = torch.zeros(5, dtype=torch.float64)
    tokens = 0
    with recorded(classifier, adversary.embedding_name) as (embeddings, logits):
        for start in range(0, len(features), PREDICTION_BATCH):
            chosen = features[start : start + PREDICTION_BATCH]
            batch = classifier.collate(chosen)
            embeddings.clear()
            logits.clear()
            adversary(**batch)
            mask = batch["attention_mask"].bool()
            clean, perturbed = embeddings
            lengths = ((perturbed - clean).norm(dim=-1) / clean.norm(dim=-1))[mask]
            right = [(each.argmax(-1) == batch["labels"]).sum() for each in logits]
            losses = [len(chosen) * adversary.last_losses[name] for name in ("task", "adversarial")]
            totals += torch.stack([lengths.sum(), *losses, *right]).double().cpu()
            tokens += int(mask.sum())
    relative_length, *means = (totals / torch.tensor([tokens, *[len(features)] * 4])).tolist()
    return Effect(step_size, relative_length, *means)


@contextmanager
def recorded(classifier: Classifier, embedding_name: str) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Two lists that get the embeddings and the logits of every pass; the adversary acts, dropout does not."""
    model = classifier.model
    embeddings: list[Tensor] = []
    logits: list[Tensor] = []
    hooks = [
        model.get_submodule(embedding_name).register_forward_hook(lambda *call: embeddings.append(call[-1].detach())),
        model.register_forward_hook(lambda *call: logits.append(call[-1].logits.detach())),
    ]
    was_training = model.training
    model.eval()
    model.training = True  # of the model alone, not of its modules: an adversary leaves a model in eval mode as it is
    try:
        yield embeddings, logits
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()


def effects_table(stages: dict[str, list[Effect]]) -> str:
    """Markdown: a row per stage of the training and step size."""
    lines = [header("Model", "Step size", "Length / embedding's", "Loss", "perturbed", "Accuracy", "perturbed")]
    for stage, effects in stages.items():
        for each in effects:
            losses = (f"{each.loss:.2f}", f"{each.perturbed_loss:.2f}")
            accuracies = (percent(each.accuracy), percent(each.perturbed_accuracy))
            lines.append(row_of(stage, f"{each.step_size:g}", f"{each.relative_length:.3f}", *losses, *accuracies))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune, measure and write the table. Returns the exit status."""
    options = make_parser().parse_args(arguments)
    console = Console()
    try:
        console.print(f"Written to {write_effects(options, console)}")
    except UserError as error:
        return tell(error)
    return 0


def write_effects(options: argparse.Namespace, console: Console) -> Path:
    (method,) = method_settings(
        Settings(task=options.task, methods=("plain",), epochs=options.epochs, changes=tuple(options.changes))
    )
    task = TASKS[options.task]
    suite = load_suite(options.data, task, None).sampled(options.train_rows, options.eval_rows)
    classifier = load_classifier(options.model, task, Settings.max_length, options.seed)

    def effects() -> list[Effect]:
        return [measure_effect(classifier, suite.validation, step_size) for step_size in options.step_sizes]

    stages = {"pre-trained": effects()}
    with ProgressBar(console, "plain") as bar:
        train(classifier, method.create(task), suite.train, method.recipe, options.seed, bar)
    stages["fine-tuned"] = effects()
    name = Path(options.model).name
    amounts = (
        f"{len(suite.train)} training rows, {options.epochs} epochs, learning rate {method.recipe.learning_rate:g}"
    )
    text = f"# Step sizes of the adversary: {task.name}, {name}\n\n{amounts}.\n\n{effects_table(stages)}\n"
    path: Path = options.output / f"{task.name}-{name}-step-sizes.md".lower()
    with atomic_write(path) as file:
        file.write(text.encode())
    console.print(text, markup=False)
    return path


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness.step_sizes", description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--task", choices=TASKS, default="sentiment", help="what is classified")
    add("--model", metavar="PATH_OR_HUB_ID", default=MINILM, help="as in benchmarks.robustness")
    add_data(parser)
    add("--epochs", type=positive, metavar="N", default=3, help="passes over the training rows")
    add("--train-rows", type=positive, metavar="N", default=2000, help="rows that are trained on")
    add("--eval-rows", type=positive, metavar="N", default=400, help="validation rows that are perturbed")
    add("--seed", type=not_negative, metavar="N", default=100, help="of the training")
    add("--step-sizes", type=length, nargs="+", metavar="SIZE", default=STEP_SIZES, help="in units of the embeddings")
    add("--set", dest="changes", nargs="+", metavar="KEY=VALUE", default=(), help="options of the recipe")
    add("--output", type=Path, metavar="DIR", default=Path("build/step-sizes"), help="where the table goes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
