"""The paper's data sets on the Hugging Face hub, loaded by name through `datasets`.

Not every set of the paper has a place there: the TextFooler versions, contrast IMDB, NQ-NLI and FEVER-NLI are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, load_dataset

from roast_optim.evaluation.errors import UserError
from roast_optim.evaluation.sets import Role

from ..data import EvaluationSet, Suite, Task, labelled, sample, split, unlabelled

MOST_ROWS = 5000  # some of these sets have hundreds of thousands of rows


@dataclass(frozen=True)
class HubSet:
    """Where a set lies and how its columns map to ours.

    Args:
        columns: its text columns in our order; "a.b" is the field b of the column a.
        labels: its label -> ours; rows with another label are left out. None: they are the same.
    """

    name: str
    path: str
    split: str
    columns: tuple[str, ...]
    config: str | None = None
    label: str = "label"
    labels: Mapping[Any, int] | None = None
    merged_labels: Mapping[int, int] = field(default_factory=dict)
    revision: str | None = None


NO_NEUTRAL = {1: 2}
BINARY = {0: 0, 1: 2}
ADVERSARIAL_GLUE = "AI-Secure/adv_glue"
GLUE = "nyu-mll/glue"
PREMISE = ("premise", "hypothesis")


def dynasent(name: str, config: str) -> HubSet:
    # The repository holds a loading script; its converted copy does not need one.
    labels = {"negative": 0, "positive": 1}
    path, revision = "dynabench/dynasent", "refs/convert/parquet"
    return HubSet(name, path, "test", ("sentence",), config, "gold_label", labels, revision=revision)


TRAIN = {
    "sentiment": HubSet("sst2_train", "stanfordnlp/sst2", "train", ("sentence",)),
    "entailment": HubSet("mnli_train", GLUE, "train", PREMISE, "mnli"),
}
VALIDATION = {
    "sentiment": HubSet("sst2", "stanfordnlp/sst2", "validation", ("sentence",)),
    "entailment": HubSet("mnli", GLUE, "validation_matched", PREMISE, "mnli"),
}
LABELLED: dict[str, dict[Role, tuple[HubSet, ...]]] = {
    "sentiment": {
        "shift": (
            HubSet("imdb", "stanfordnlp/imdb", "test", ("text",)),
            HubSet("yelp", "fancyzhx/yelp_polarity", "test", ("text",)),
            HubSet("amazon", "fancyzhx/amazon_polarity", "test", ("content",)),
            HubSet("poem", "google-research-datasets/poem_sentiment", "test", ("verse_text",), labels={0: 0, 1: 1}),
        ),
        "adversarial": (
            dynasent("dynasent_r1", "dynabench.dynasent.r1.all"),
            dynasent("dynasent_r2", "dynabench.dynasent.r2.all"),
            HubSet("advglue_sst2", ADVERSARIAL_GLUE, "validation", ("sentence",), "adv_sst2"),
        ),
    },
    "entailment": {
        "shift": (
            HubSet("mnli_mm", GLUE, "validation_mismatched", PREMISE, "mnli"),
            HubSet(
                "qnli", GLUE, "validation", ("sentence", "question"), "qnli", labels=BINARY, merged_labels=NO_NEUTRAL
            ),
            HubSet(
                "wnli",
                GLUE,
                "validation",
                ("sentence1", "sentence2"),
                "wnli",
                labels={1: 0, 0: 2},
                merged_labels=NO_NEUTRAL,
            ),
            HubSet("hans", "jhu-cogsci/hans", "validation", PREMISE, labels=BINARY, merged_labels=NO_NEUTRAL),
            HubSet(
                "wanli",
                "alisawuffles/WANLI",
                "test",
                PREMISE,
                label="gold",
                labels={"entailment": 0, "neutral": 1, "contradiction": 2},
            ),
        ),
        "adversarial": (
            *(HubSet(f"anli_r{number}", "facebook/anli", f"test_r{number}", PREMISE) for number in (1, 2, 3)),
            HubSet("advglue_mnli", ADVERSARIAL_GLUE, "validation", PREMISE, "adv_mnli"),
        ),
    },
}
ANOMALIES = {
    "sentiment": (HubSet("mnli_premises", GLUE, "validation_matched", ("premise",), "mnli"),),
    "entailment": (HubSet("sst2", "stanfordnlp/sst2", "validation", ("sentence",)),),
}
ANOMALIES_OF_BOTH = (
    HubSet("wmt16", "wmt/wmt16", "test", ("translation.en",), "de-en"),
    HubSet("multi30k", "bentrevett/multi30k", "test", ("en",)),
    HubSet("20_newsgroups", "SetFit/20_newsgroups", "test", ("text",)),
    HubSet("qqp", GLUE, "validation", ("question1",), "qqp"),
)


def load_hub(task: Task) -> Suite:
    """Load the paper's sets for a task. The validation set is cut in halves: hyper-parameters and final scores.

    Raises:
        UserError: a set cannot be loaded, or has other columns or labels than expected.
    """
    validation, in_distribution = split_validation(task)
    return Suite(
        task=task,
        source="hub",
        train=load_labelled(TRAIN[task.name], task),
        validation=validation,
        in_distribution=in_distribution,
        others=(
            *(
                EvaluationSet(each.name, role, sample(load_labelled(each, task), MOST_ROWS), each.merged_labels)
                for role, sets in LABELLED[task.name].items()
                for each in sets
            ),
            *(
                EvaluationSet(each.name, "anomaly", load_anomalies(each))
                for each in (*ANOMALIES[task.name], *ANOMALIES_OF_BOTH)
            ),
        ),
    )


def split_validation(task: Task) -> tuple[EvaluationSet, EvaluationSet]:
    hub_set = VALIDATION[task.name]
    rows = load_labelled(hub_set, task)
    first, second = split(rows, len(rows) // 2)
    return (
        EvaluationSet(f"{hub_set.name}_first_half", "validation", first),
        EvaluationSet(f"{hub_set.name}_second_half", "in_distribution", second),
    )


def load_labelled(hub_set: HubSet, task: Task) -> Dataset:
    rows = load(hub_set, (hub_set.label,))
    known: Mapping[Any, int] = hub_set.labels or {number: number for number in range(len(task.labels))}
    kept = [
        (texts, known[label])
        for texts, label in zip(column_texts(rows, hub_set), rows[hub_set.label][:], strict=True)
        if label in known and all(text.strip() for text in texts)
    ]
    if not kept:
        raise UserError(f"{hub_set.path} ({hub_set.split}): no row has one of the labels {list(known)}")
    return labelled(task, [texts for texts, _ in kept], [label for _, label in kept])


def load_anomalies(hub_set: HubSet) -> Dataset:
    rows = sample(load(hub_set, ()), MOST_ROWS)
    return unlabelled([text for (text,) in column_texts(rows, hub_set) if text.strip()])


def load(hub_set: HubSet, more_columns: tuple[str, ...]) -> Dataset:
    """The set as it lies on the hub, checked for the columns that we read."""
    try:
        rows = load_dataset(hub_set.path, hub_set.config, split=hub_set.split, revision=hub_set.revision)
    except Exception as error:  # datasets, huggingface_hub and httpx each raise their own kinds
        reason = str(error).strip().splitlines()
        raise UserError(
            f"cannot load {hub_set.path} from the hub: {reason[0] if reason else type(error).__name__}"
        ) from error
    assert isinstance(rows, Dataset)
    for column in (*(name.split(".")[0] for name in hub_set.columns), *more_columns):
        if column not in rows.column_names:
            raise UserError(f"{hub_set.path}: column {column!r} is missing; it has {', '.join(rows.column_names)}")
    return rows


def column_texts(rows: Dataset, hub_set: HubSet) -> list[tuple[str, ...]]:
    columns = []
    for name in hub_set.columns:
        column, _, key = name.partition(".")
        columns.append([value[key] if key else value for value in rows[column][:]])
    return list(zip(*columns, strict=True))
