"""What the protocol runs: the regimes. PROTOCOL.md says why each is as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .looks import SEEDS
from .packaged_models import MINILM, MPNET, SMOLLM2
from .trials import AT_EQUAL_RATE, CONTROLS, TRIALS, Derived, Trial, at_rates, by_rate, selection, tried

# The method that `sentiment` found best, by the rule in PROTOCOL.md: entered after its last look, in a commit of its
# own and before the first run that depends on it. None: not known yet; what does not depend on it can begin.
WINNER: str | None = None

# Of sentiment's six, those that regimes try in which a run takes longer; of a candidate the first four.
FEWER = {"plain": TRIALS["plain"][1:5], "roast": TRIALS["roast"][2:]}
PAPER = {"alpha": 0.9, "beta": 10.0}  # of sentiment; the adversary's step of 0.1 and weight of 0.01 are defaults


@dataclass(frozen=True)
class Regime:
    """A task, a model, an amount of data, and how it is measured.

    Args:
        domains: the sets beside the validation set on which settings are chosen; no final score uses them.
        rows: of every set but the validation set, the in-distribution test and the attacked ones.
        attack_rows: test rows that are attacked in a final run.
        trials: the settings tried of each method.
        others: settings without trials of their own, by the names that they are told under: controls, plain
            fine-tuning at the learning rate, or with the time, of another method, and what follows from the trials of
            another regime.
        survivors: settings of a method that run with the first trial seed, with the second, ...
        looks: numbers of seeds at which the final runs are looked at.
        others_when_asked: whether `others` have final runs only where they are asked for by name.
    """

    task: str
    train_rows: int | None
    epochs: int
    domains: tuple[str, ...]
    trials: Mapping[str, tuple[Trial, ...]]
    others: Mapping[str, Trial | Derived] = field(default_factory=dict)
    model: str = MINILM
    train_set: str | None = None
    rows: int = 500
    attack_rows: int = 300
    precision: str = "bfloat16"
    survivors: tuple[int, ...] = (6, 3, 2)
    looks: tuple[int, ...] = SEEDS
    others_when_asked: bool = False

    @property
    def usual(self) -> list[str]:
        """What has final runs where nothing else is said."""
        return [*self.trials, *(() if self.others_when_asked else self.others)]

    @property
    def sources(self) -> set[str]:
        """The regimes in whose trials settings are chosen, its own apart."""
        return {each.regime for each in self.others.values() if isinstance(each, Derived) and each.regime}


def fewer(method: str) -> tuple[Trial, ...]:
    return FEWER.get(method, TRIALS[method][:4])


def controls_of(method: str) -> dict[str, Derived]:
    return {name: each for name, each in CONTROLS.items() if each.of == method}


def regimes(winner: str | None) -> dict[str, Regime]:
    """All regimes, given the method that `sentiment` found best."""
    winners = () if winner in (None, "plain", "roast") else (winner,)
    domains = ("amazon_uci", "dynasent_r1_dev", "news20_mini")
    return {
        "sentiment": Regime(
            task="sentiment",
            train_rows=2000,
            epochs=3,
            domains=domains,
            trials=TRIALS,
            others={**CONTROLS, **AT_EQUAL_RATE},
            others_when_asked=True,
        ),
        "phrases": Regime(
            task="sentiment",
            train_rows=None,
            train_set="sst2_train_glue",
            epochs=1,
            domains=domains,
            trials={},
            others={
                "plain": Derived("plain", regime="sentiment"),
                "advembed": Derived("roast", among=PAPER, method="advembed", regime="sentiment"),
                "roast": Derived("roast", among=PAPER, regime="sentiment"),
                **{name: Derived(name, regime="sentiment") for name in winners},
            },
            looks=(3,),
        ),
        # Twice the learning rates of sentiment: in the first protocol entailment did best there.
        "entailment": Regime(
            task="entailment",
            train_rows=None,
            epochs=3,
            domains=("snli_1k", "anli_r1_dev", "news20_mini"),
            trials={name: at_rates(fewer(name), 2.0) for name in ("plain", "roast", *winners)},
            others={name: each for method in winners for name, each in controls_of(method).items()},
            survivors=(4, 2),
            looks=(5,),
        ),
        # Half the learning rates. A step of 0.1 is 15% of an embedding's length here, 6.5% of MiniLM's, so that most of
        # RoAST's trials have shorter ones; the paper's is among them.
        "all-mpnet-base-v2": Regime(
            task="sentiment",
            train_rows=2000,
            epochs=3,
            domains=domains,
            model=MPNET,
            trials={
                "plain": at_rates(fewer("plain"), 0.5),
                "roast": tried(
                    "roast",
                    (2.5e-5, selection(0.9, 10.0)),
                    (2.5e-5, selection(0.6, 1.0, step_size=0.04)),
                    (5e-5, selection(0.6, 1.0, step_size=0.04)),
                    (2.5e-5, selection(0.6, 1.0, step_size=0.012)),
                ),
                **{name: at_rates(fewer(name), 0.5) for name in winners},
            },
            survivors=(4, 2),
            looks=(5,),
            attack_rows=100,
        ),
        # A step of 0.1 is 15% of an embedding's length here too: RoAST's becomes the same share as MiniLM's. Those of
        # the candidates are shares anyhow.
        "SmolLM2-135M": Regime(
            task="sentiment",
            train_rows=2000,
            epochs=3,
            domains=domains,
            model=SMOLLM2,
            trials={"plain": by_rate("plain", 2e-5, 5e-5, 1e-4)},
            others={
                "roast": Derived("roast", regime="sentiment", rate_of_plain=True, step_factor=0.43),
                **{name: Derived(name, regime="sentiment", rate_of_plain=True) for name in winners},
            },
            survivors=(3,),
            looks=(3,),
            attack_rows=100,
        ),
    }


def possible(name: str, regimes: Mapping[str, Regime]) -> Iterator[Trial]:
    """Every setting that may come up in a regime, whatever its trials say; some more than once."""
    regime = regimes[name]
    for trials in regime.trials.values():
        yield from trials
    for other in regime.others.values():
        if isinstance(other, Trial):
            yield other
            continue
        source = regimes[other.regime or name]
        for chosen in other.candidates(source.trials):
            yield from (other.trial(chosen, factor) for factor in rate_factors(other, regime.trials, source.trials))


def rate_factors(
    other: Derived, own: Mapping[str, Sequence[Trial]], theirs: Mapping[str, Sequence[Trial]]
) -> list[float]:
    """By what the learning rate may be multiplied."""
    if not other.rate_of_plain:
        return [1.0]
    return [rate_factor(mine, yours) for mine in own["plain"] for yours in theirs["plain"]]


def rate_factor(own: Trial, theirs: Trial) -> float:
    return float(own.options["learning_rate"] / theirs.options["learning_rate"])


REGIMES = regimes(WINNER)
