"""`python -m benchmarks.robustness.recorded`: every recorded run is one that a command in results/README.md would do.

Nothing is trained and no data is read: a command's runs are planned, and looked for in the records of its --output.
Words in capitals in a command, and "KEY=VALUE ...", stand for what a trial varies; they are filled in from the records.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import __main__ as command
from .regimes import REGIMES, possible
from .runs import PROTOCOL, Row, identity_of, read_runs
from .settings import RECIPE_OPTIONS, method_settings
from .study import RUNS, planned_on

RESULTS = Path(__file__).parent / "results"
STUDY, PROTOCOL_COMMAND = "benchmarks.robustness", "benchmarks.robustness.protocol"
PLACEHOLDERS = {"METHOD": "method", "ROWS": "train_rows", "EPOCHS": "epochs", "ALPHA": "alpha", "BETA": "beta"}
ANY_OPTIONS = ("KEY=VALUE", "...")


def main() -> int:
    """Print what does not fit. Returns 0 if everything does."""
    wrong = [*problems(RESULTS)]
    for each in wrong:
        print(each)
    print(
        f"{len(wrong)} problems"
        if wrong
        else "Every recorded run is named by a command, and every command's runs are recorded."
    )
    return 1 if wrong else 0


def problems(results: Path) -> Iterator[str]:
    """What is recorded and not named by a command, and what a command names and is not recorded."""
    named: dict[Path, set[str]] = {}
    for words in commands((results / "README.md").read_text()):
        folder = results.parents[2] / words[words.index("--output") + 1]
        rows = read_runs(folder / RUNS)
        for identity in named_runs(words, rows):
            text = identity_of(identity)
            named.setdefault(folder, set()).add(text)
            # Which runs of the protocol come up depends on what was recorded: it says itself what is still due.
            is_whole = not is_template(words) and words[0] != PROTOCOL_COMMAND
            if is_whole and text not in {identity_of(row) for row in rows}:
                yield f"not recorded: {identity['method']} seed {identity['seed']} of {shlex.join(words)}"
    for path in sorted(results.rglob(RUNS)):
        for row in read_runs(path):
            if identity_of(row) not in named.get(path.parent, set()):
                run = f"{row['purpose']} {row['method']} seed {row['seed']}"
                yield f"no command: {path}: {run} {json.dumps(row['options'])}"


def commands(text: str) -> Iterator[list[str]]:
    """The words after `python -m` of every command of the study in blocks of code."""
    for block in re.findall(r"^```\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"] and words[2] in (STUDY, PROTOCOL_COMMAND):
                yield words[2:]


def is_template(words: Sequence[str]) -> bool:
    return any(re.search(rf"\b{each}\b", word) for word in words for each in (*PLACEHOLDERS, ANY_OPTIONS[0]))


def named_runs(words: Sequence[str], rows: Sequence[Row]) -> Iterator[Row]:
    """The identities of the runs that a command does; of a template, those of the records that it can be filled to."""
    if words[0] == PROTOCOL_COMMAND:
        yield from protocol_runs(words[1], words[2], rows)
    elif is_template(words):
        for row in rows:
            yield from planned_runs(filled(words[1:], row), row)
    else:
        yield from planned_runs(words[1:], rows[0])


def planned_runs(arguments: Sequence[str], row: Row) -> Iterator[Row]:
    """What a command plans, on the data of a record."""
    settings = command.read_settings(arguments)
    source = row["options"]["data"]
    for identity, _ in planned_on(
        settings, source, settings.train_rows or row["train_rows"], method_settings(settings)
    ):
        yield identity


def filled(words: Sequence[str], row: Row) -> list[str]:
    """A template's words with what a record has."""
    known = set(RECIPE_OPTIONS) | {key for key in row["options"] if key not in STUDY_OPTIONS}
    options = [f"{key}={json.dumps(row['options'][key])}" for key in row["options"] if key in known]
    found = []
    for word in words:
        if word in ANY_OPTIONS:
            found += options if word == ANY_OPTIONS[0] else []
            continue
        for name, key in PLACEHOLDERS.items():
            value = row[key] if key in row else row["options"].get(key, "null")
            word = re.sub(rf"\b{name}\b", str(value), word)
        found.append(word)
    return found


# Options of a record that are no method's and not the recipe's: the data, and how it is measured.
STUDY_OPTIONS = ("data", "train_set", "eval_rows", "attack_rows", "max_length", "evaluation_precision")


def protocol_runs(name: str, stage: str, rows: Sequence[Row]) -> Iterator[Row]:
    """The runs of a regime that may come up in a stage: which of its settings do depends on what was recorded."""
    from .protocol import TRIAL_SEEDS, settings_for

    regime = REGIMES[name]
    purpose = "tuning" if stage == "trials" else "final"
    seeds = TRIAL_SEEDS if stage == "trials" else sorted({row["seed"] for row in rows if row["purpose"] == "final"})
    for row in rows[:1]:
        for trial in possible(name, REGIMES):
            for seed in seeds:
                one = settings_for(regime, purpose, trial, seed)
                source, train_rows = row["options"]["data"], one.train_rows or row["train_rows"]
                for identity, _ in planned_on(one, source, train_rows, method_settings(one)):
                    yield {**identity, "protocol": PROTOCOL}


if __name__ == "__main__":
    sys.exit(main())
