"""A deterministic word-level attack: swap neighbouring characters in the words that the model relies on most.

For every text that the model classifies correctly, the words are ordered by how much the probability of the right
label falls when the word is removed (as TextFooler does: Jin et al., AAAI 2020). Then, word by word, every swap of two
neighbouring characters (the first character stays) is tried and the most harmful one kept (a character edit like those
of DeepWordBug: Gao et al., 2018), until the prediction is wrong or the share of words allowed is used up. Of a pair of
texts, the second is attacked. Ties go to the earlier word and the earlier swap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .progress import SILENT, Observer
from .sets import Texts

Predict = Callable[[Sequence[Texts]], Tensor]  # texts -> logits [rows, labels]
ATTACK = "character_swaps"  # name of the set that the attack makes
CHANGED_SHARE = 0.2  # of the words, rounded up
MOST_WORDS = 64  # words considered per text; removal costs one prediction each


class Swap(NamedTuple):
    """Two neighbouring characters exchanged: in which row, in which word of its last text, and the first's place."""

    row: int
    word: int
    place: int


@dataclass
class Target:
    """A text under attack: its words, which of them to change in which order, and whether the model was fooled."""

    row: int
    fixed: Texts
    words: list[str]
    label: int
    order: list[int] = field(default_factory=list)
    fooled: bool = False

    def with_words(self, words: Sequence[str]) -> Texts:
        return (*self.fixed, " ".join(words))

    def with_word(self, position: int, word: str) -> Texts:
        return self.with_words([*self.words[:position], word, *self.words[position + 1 :]])

    def swaps_from(self, turn: int) -> int:
        """How many swaps there are to try in the words whose turn comes then or later."""
        return sum(len(swaps(self.words[position])) for position in self.order[turn:])


def attack(predict: Predict, texts: Sequence[Texts], labels: Sequence[int], observer: Observer = SILENT) -> list[Texts]:
    """The texts after the attack, in their order; texts that the model gets wrong anyway are returned unchanged.

    Args:
        observer: told of two stages, whose steps are the texts that are predicted; `predict` tells it of each.
    """
    attacked = list(texts)
    predicted = predict(texts).argmax(-1).tolist()
    targets = [
        Target(row, text[:-1], text[-1].split(), label)
        for row, (text, label, guess) in enumerate(zip(texts, labels, predicted, strict=True))
        if guess == label
    ]
    rank_words(predict, targets, observer)
    observer.stage("attack: swapping characters", sum(target.swaps_from(0) for target in targets))
    for turn in range(max((len(target.order) for target in targets), default=0)):
        standing = [each for each in targets if not each.fooled and turn < len(each.order)]
        swap_in_next_word(predict, standing, turn)
        observer.advance(
            steps=sum(each.swaps_from(turn + 1) for each in standing if each.fooled)
        )  # not needed any more
    for target in targets:
        attacked[target.row] = target.with_words(target.words)
    return attacked


def swaps_between(before: Sequence[Texts], after: Sequence[Texts]) -> list[Swap]:
    """What :func:`attack` did: from the texts it was given to those it returned."""
    found = []
    for row, (old, new) in enumerate(zip(before, after, strict=True)):
        for word, (old_word, new_word) in enumerate(zip(old[-1].split(), new[-1].split(), strict=True)):
            if old_word != new_word:
                place = next(at for at, pair in enumerate(zip(old_word, new_word, strict=True)) if pair[0] != pair[1])
                found.append(Swap(row, word, place))
    return found


def apply_swaps(texts: Sequence[Texts], chosen: Sequence[Swap]) -> list[Texts]:
    """The texts with these swaps; a row without any stays as it is, to the letter.

    Raises:
        IndexError: a swap is of a row, word or character that does not exist.
    """
    changed = list(texts)
    for row, position, place in chosen:
        words = changed[row][-1].split()
        word = words[position]
        words[position] = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        changed[row] = (*changed[row][:-1], " ".join(words))
    return changed


def swaps(word: str) -> list[str]:
    """The word with two neighbouring characters swapped, in every way that changes it and keeps its first character."""
    swapped = [
        word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        for place in range(1, len(word) - 1)
        if word[place].isalpha() and word[place + 1].isalpha() and word[place] != word[place + 1]
    ]
    return list(dict.fromkeys(swapped))


def rank_words(predict: Predict, targets: list[Target], observer: Observer) -> None:
    """Set each target's order: the words whose removal hurts most, as many as may be changed."""
    candidates = [
        (target, position)
        for target in targets
        for position, word in enumerate(target.words[:MOST_WORDS])
        if swaps(word)
    ]
    shortened = [
        target.with_words(target.words[:position] + target.words[position + 1 :]) for target, position in candidates
    ]
    observer.stage("attack: ordering words", len(shortened))
    remaining = right_probability(predict, shortened, [target.label for target, _ in candidates])
    by_target: dict[int, list[tuple[float, int]]] = {}
    for (target, position), probability in zip(candidates, remaining, strict=True):
        by_target.setdefault(target.row, []).append((probability, position))
    for target in targets:
        allowed = math.ceil(CHANGED_SHARE * len(target.words))
        target.order = [position for _, position in sorted(by_target.get(target.row, []))[:allowed]]


def swap_in_next_word(predict: Predict, targets: list[Target], turn: int) -> None:
    """Give each target's next word its most harmful swap, and note who is fooled."""
    candidates = [
        (target, target.order[turn], word) for target in targets for word in swaps(target.words[target.order[turn]])
    ]
    texts = [target.with_word(position, word) for target, position, word in candidates]
    if not texts:
        return
    logits = predict(texts)
    best: dict[int, tuple[float, str, bool]] = {}
    for (target, _, word), row in zip(candidates, logits.double(), strict=True):
        probability = float(torch.softmax(row, -1)[target.label])
        if target.row not in best or probability < best[target.row][0]:
            best[target.row] = (probability, word, int(row.argmax()) != target.label)
    for target in targets:
        _, target.words[target.order[turn]], target.fooled = best[target.row]


def right_probability(predict: Predict, texts: Sequence[Texts], labels: Sequence[int]) -> list[float]:
    """The probability that the model gives to each text's label."""
    if not texts:
        return []
    probabilities = torch.softmax(predict(texts).double(), -1)
    return [float(row[label]) for row, label in zip(probabilities, labels, strict=True)]
