"""`python -m benchmarks.robustness.protocol REGIME STAGE`: the runs of PROTOCOL.md, one after the other.

Settings are chosen by successive halving on validation data; the chosen ones run with many seeds. What is due follows
from what is recorded, so that any number of workers can start, stop and go on: each takes a run that no other holds.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from roast_optim.evaluation.arguments import positive
from roast_optim.evaluation.errors import UserError, tell
from roast_optim.evaluation.progress import SILENT
from roast_optim.evaluation.scores import PERSPECTIVES

from .arguments import add_data
from .data import TASKS, Suite
from .frozen_attack import frozen
from .models import weights_digest
from .regimes import REGIMES, Regime, rate_factor
from .runs import PROTOCOL, Row, RunStore
from .settings import MethodSettings, Settings, method_settings
from .sources import load_suite
from .study import RUNS, digest_of, planned, record
from .trials import Derived, Trial
from .tuning import LEARNED

TRIAL_SEEDS = (100, 101, 102)  # which no final run uses
CLAIMS = ".claims"
WAIT = 20  # seconds, where all that is due is being done by others


@dataclass(frozen=True)
class Due:
    """A run: its identity, the settings of the whole and of its method, and what it is measured on."""

    identity: Row
    settings: Settings
    method: MethodSettings
    suite: Suite


class Protocol:
    """The runs of one regime: which are due, given what is recorded.

    Args:
        others: regimes by name, among them those in whose trials this one's settings are chosen. Their records lie in
            folders of these names beside the output.
    """

    def __init__(
        self, regime: Regime, data: Sequence[str], output: Path, others: Mapping[str, Regime] = REGIMES
    ) -> None:
        self.regime = regime
        self.sources = {name: Protocol(others[name], data, output.parent / name) for name in regime.sources}
        self.seeds = TRIAL_SEEDS[: len(regime.survivors)]
        self.store = RunStore(output / RUNS)
        task = TASKS[regime.task]
        suite = load_suite(data, task, regime.train_set)
        sampled = suite.sampled(regime.train_rows, regime.rows)
        whole = replace(sampled, validation=suite.validation, in_distribution=suite.in_distribution)
        self.suites = {"final": whole.without(regime.domains)}
        if regime.trials:
            trials = whole.for_tuning(regime.domains)
            self.suites["tuning"] = replace(trials, others=(*trials.others, frozen(whole.validation)))
        self.weights = weights_digest(regime.model, task)

    def run(self, purpose: str, trial: Trial, seed: int) -> Due:
        """The run of a method with its settings and a seed."""
        suite = self.suites[purpose]
        settings = settings_for(self.regime, purpose, trial, seed)
        ((identity, method),) = planned(settings, suite, method_settings(settings))
        identity |= {"protocol": PROTOCOL, "content": {"data": suite.digest, "weights": self.weights}}
        return Due(identity, settings, method, suite)

    def recorded(self, purpose: str, trial: Trial, seed: int) -> Row | None:
        return self.store.find(self.run(purpose, trial, seed).identity)

    # ----------------------------------------------------------------------------------------------------------- trials

    def trials_due(self) -> list[Due]:
        """Trials that nobody has recorded and whose turn it is; methods in the regime's order."""
        return [
            self.run("tuning", trial, seed)
            for method, settings in self.regime.trials.items()
            for trial, seed in self.open_trials(settings)
            if self.recorded("tuning", trial, seed) is None
        ]

    def open_trials(self, settings: Sequence[Trial]) -> Iterator[tuple[Trial, int]]:
        """Settings and seeds of the rounds up to the first one that is not complete."""
        alive = list(settings)
        for round_, (seed, count) in enumerate(zip(self.seeds, self.regime.survivors, strict=True)):
            if round_ and not self.reference():
                return
            alive = alive[:count] if round_ == 0 else self.best(alive, self.seeds[:round_])[:count]
            yield from ((trial, seed) for trial in alive)
            if any(self.recorded("tuning", trial, seed) is None for trial in alive):
                return

    def best(self, settings: Sequence[Trial], seeds: Sequence[int]) -> list[Trial]:
        """The settings by their mean score over some seeds, the best first.

        Those whose mean accuracy is more than LEARNED below the best one's come last: a model that has hardly learned
        its task is hard to attack. Those that diverged are left out.
        """
        found: list[tuple[bool, float, int]] = []
        rows = [[self.recorded("tuning", trial, seed) for seed in seeds] for trial in settings]
        accuracies = [mean_of(mine, "acc_in") for mine in rows]
        highest = max((each for each in accuracies if each is not None), default=0.0)
        for place, (mine, accuracy) in enumerate(zip(rows, accuracies, strict=True)):
            scores = [self.score(row) for row in mine if row is not None and "failed" not in row]
            if accuracy is not None and len(scores) == len(seeds):
                found.append((accuracy >= highest - LEARNED, sum(scores) / len(scores), -place))
        return [settings[-place] for _, _, place in sorted(found, reverse=True)]

    def reference(self) -> dict[str, float | None]:
        """The mean scores of all settings of plain fine-tuning with the first seed; empty until all are recorded.

        It weighs the columns by what plain fine-tuning leaves to gain in each.
        """
        rows = [self.recorded("tuning", trial, TRIAL_SEEDS[0]) for trial in self.regime.trials["plain"]]
        if None in rows:
            return {}
        done = [row for row in rows if row is not None and "failed" not in row]
        return {each.key: mean_of(done, each.key) for each in PERSPECTIVES}

    def score(self, row: Row) -> float:
        """Mean over the columns that there are of the relative improvement over :meth:`reference`."""
        gains = self.gains(row)
        return sum(gains) / len(gains) if gains else 0.0

    def gains(self, row: Row) -> list[float]:
        reference = self.reference()
        found = [(each, row[each.key], reference.get(each.key)) for each in PERSPECTIVES]
        return [
            (value - plain) / (each.best - plain)
            for each, value, plain in found
            if value is not None and plain is not None and plain != each.best
        ]

    def chosen(self, method: str) -> Trial | None:
        """The setting that the trials of a method chose; None as long as they are not done."""
        settings = self.regime.trials[method]
        if not self.reference() or any(
            self.recorded("tuning", trial, seed) is None for trial, seed in self.open_trials(settings)
        ):
            return None
        ranked = list(settings)
        for round_, count in enumerate(self.regime.survivors):
            ranked = self.best(ranked[:count], self.seeds[: round_ + 1])
        return ranked[0] if ranked else None

    # ------------------------------------------------------------------------------------------------------------ final

    def setting(self, name: str) -> Trial | None:
        """What runs under a name: the setting that a method's trials chose, or another; None before it is known.

        Raises:
            UserError: there is none.
        """
        if name in self.regime.trials:
            return self.chosen(name)
        if name not in self.regime.others:
            known = ", ".join((*self.regime.trials, *self.regime.others))
            raise UserError(f"{name!r} is no method of this regime; known: {known}")
        other = self.regime.others[name]
        if isinstance(other, Trial):
            return other
        source = self if other.regime is None else self.sources[other.regime]
        chosen = source.chosen_among(other)
        if chosen is None or not other.rate_of_plain:
            return None if chosen is None else other.trial(chosen)
        mine, yours = self.chosen("plain"), source.chosen("plain")
        return None if mine is None or yours is None else other.trial(chosen, rate_factor(mine, yours))

    def chosen_among(self, other: Derived) -> Trial | None:
        """What the trials of a method chose, of those that another setting may follow from."""
        chosen = self.chosen(other.of)
        if chosen is None or not other.among:
            return chosen
        ranked = self.best(other.candidates(self.regime.trials), self.seeds[:1])
        return ranked[0] if ranked else None

    def final_runs(self, name: str, seeds: int) -> dict[int, Row]:
        """Seed -> run, of those that are recorded and have scores."""
        trial = self.setting(name)
        if trial is None:
            return {}
        rows = {seed: self.recorded("final", trial, seed) for seed in range(seeds)}
        return {seed: row for seed, row in rows.items() if row is not None and "failed" not in row}

    def final_due(self, methods: Sequence[str], seeds: int) -> list[Due]:
        """Final runs that nobody has recorded; all methods of one seed before the next.

        Raises:
            UserError: a method's trials are not done.
        """
        chosen = {name: self.setting(name) for name in methods}
        if missing := [method for method, trial in chosen.items() if trial is None]:
            raise UserError(f"the trials of {', '.join(missing)} are not done in {self.store.path}")
        return [
            self.run("final", trial, seed)
            for seed in range(seeds)
            for trial in chosen.values()
            if trial is not None and self.recorded("final", trial, seed) is None
        ]


def settings_for(regime: Regime, purpose: str, trial: Trial, seed: int) -> Settings:
    """A run as the study's command would be told to do it; where the data and the output are is not in it."""
    return Settings(
        task=regime.task, methods=(trial.method,), model=regime.model, train_set=regime.train_set, purpose=purpose,
        first_seed=seed, epochs=trial.epochs or regime.epochs, train_rows=regime.train_rows, eval_rows=regime.rows,
        attack_rows=regime.attack_rows if purpose == "final" else 0, evaluation_precision=regime.precision,
        changes=(f'precision="{regime.precision}"', *trial.changes()),
    )  # fmt: skip


def mean_of(rows: Sequence[Row | None], key: str) -> float | None:
    values = [row[key] for row in rows if row is not None and "failed" not in row]
    complete = len(values) == len(rows) > 0 and None not in values
    return sum(values) / len(values) if complete else None


@contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Whether this process alone may do the run meanwhile; the claim of a process that dies ends with it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def work(protocol: Protocol, options: argparse.Namespace, console: Console) -> None:
    """Do what is due until nothing is."""
    folder = protocol.store.path.parent
    while True:
        protocol.store.reread()
        if options.stage == "trials":
            due = protocol.trials_due()
        else:
            seeds = options.seeds or protocol.regime.looks[0]
            due = protocol.final_due(options.methods or protocol.regime.usual, seeds)
        if not due:
            return
        if options.dry_run:
            for each in due:
                console.print(describe(each), markup=False, highlight=False, soft_wrap=True)
            return
        if not any(do_one(protocol.store, each, folder / CLAIMS, console) for each in due):
            time.sleep(WAIT)


def do_one(store: RunStore, due: Due, claims: Path, console: Console) -> bool:
    """Do the run unless another process is at it or has done it. Whether this one did."""
    with claim(claims, digest_of(due.identity)) as mine:
        if not mine:
            return False
        store.reread()
        if store.find(due.identity):
            return False
        row = record(store, due.identity, due.settings, due.suite, due.method, SILENT)
        console.print(f"{describe(due)}: {row.get('failed', 'done')}", markup=False, highlight=False, soft_wrap=True)
    return True


def describe(due: Due) -> str:
    changes = " ".join(due.settings.changes)
    return f"{due.identity['purpose']} {due.method.name} seed {due.identity['seed']} {changes}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs of a stage. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness.protocol", description=__doc__)
    add = parser.add_argument
    add("regime", choices=REGIMES)
    add("stage", choices=("trials", "status", "final", "look"), help="status tells of the trials, look of final runs")
    add_data(parser)
    add("--methods", nargs="+", metavar="METHOD", help="of the final runs; the regime's usual ones if not given")
    add("--seeds", type=positive, metavar="N", help="of the final runs; a look's number, its first if not given")
    add("--output", type=Path, required=True, metavar="DIR", help="where runs.jsonl and the predictions go")
    add("--dry-run", action="store_true", help="print what is due, and do nothing")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        protocol = Protocol(REGIMES[options.regime], options.data, options.output)
        if options.stage == "status":
            from .trials_table import trials_table

            console.print(trials_table(protocol), markup=False, highlight=False, soft_wrap=True)
        elif options.stage == "look":
            from .look import look

            console.print(f"Written to {look(protocol, options.methods, options.seeds or protocol.regime.looks[0])}")
        else:
            work(protocol, options, console)
    except UserError as error:
        return tell(error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
