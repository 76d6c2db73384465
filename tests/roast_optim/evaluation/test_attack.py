"""The attack: deterministic, bounded, and aimed at the words that matter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from roast_optim.evaluation.attack import CHANGED_SHARE, attack, swaps
from roast_optim.evaluation.classifier import Classifier
from roast_optim.evaluation.sets import Texts

WEIGHTS = {"great": 2.0, "good": 1.0, "awful": -2.0, "poor": -1.0}


def count_words(texts: Sequence[Texts]) -> Tensor:
    """A model that adds up the weights of the words that it knows in the last text."""
    sums = torch.tensor([sum(WEIGHTS.get(word, 0.0) for word in text[-1].split()) for text in texts])
    return torch.stack([-sums, sums], dim=-1)


def test_swaps_keep_the_first_character_and_change_the_word() -> None:
    assert swaps("great") == ["gerat", "graet", "greta"]
    assert swaps("bad") == ["bda"]
    assert swaps("good") == ["godo"]  # swapping the two o changes nothing
    assert swaps("it") == swaps("a") == swaps("") == swaps("1990") == []


@given(st.text(alphabet="abcXYZ1'-", max_size=12))
def test_swaps_are_neighbours_exchanged(word: str) -> None:
    for swapped in swaps(word):
        different = [place for place in range(len(word)) if word[place] != swapped[place]]
        assert len(different) == 2
        assert different[1] == different[0] + 1 > 1
        assert sorted(swapped) == sorted(word)


def test_the_word_whose_removal_hurts_most_is_changed_first() -> None:
    (text,) = attack(count_words, [("a good film and a great one , all told",)], [1])
    assert text == ("a godo film and a gerat one , all told",)  # two of ten words may be changed
    (text,) = attack(count_words, [("a good film and a great one",)], [1])  # two of seven, rounded up
    assert text == ("a godo film and a gerat one",)
    (text,) = attack(count_words, [("good film great one",)], [1])  # one of four
    assert text == ("good film gerat one",)


def test_it_stops_as_soon_as_the_model_is_fooled() -> None:
    words = "the plot is awful but great and poor things do make up one whole film"
    (text,) = attack(count_words, [(words,)], [0])
    assert text[0] != words
    assert sum(old != new for old, new in zip(words.split(), text[0].split(), strict=True)) == 1


def test_texts_that_are_wrong_already_stay_as_they_are() -> None:
    assert attack(count_words, [("an awful film",)], [1]) == [("an awful film",)]


def test_the_second_of_a_pair_is_attacked() -> None:
    ((first, second),) = attack(count_words, [("great great", "great film")], [1])
    assert first == "great great"
    assert second != "great film"


def test_no_text_and_texts_without_long_words_are_legal() -> None:
    assert attack(lambda texts: torch.zeros(len(texts), 2), [], []) == []
    assert attack(count_words, [("it is so",)], [0]) == [("it is so",)]


@pytest.mark.parametrize("seed", range(3))
def test_it_is_deterministic_and_changes_no_more_words_than_allowed(classifier: Classifier, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = ["great", "awful", "film", "story", "really", "a"]
    texts = [
        (" ".join(vocabulary[int(word)] for word in torch.randint(6, (length,), generator=generator)),)
        for length in (1, 4, 9, 15)
    ]
    labels = classifier.predict(texts).argmax(-1).tolist()
    attacked = attack(classifier.predict, texts, labels)
    assert attacked == attack(classifier.predict, texts, labels)
    for (old,), (new,) in zip(texts, attacked, strict=True):
        changed = sum(first != second for first, second in zip(old.split(), new.split(), strict=True))
        assert changed <= math.ceil(CHANGED_SHARE * len(old.split()))


def test_a_text_is_attacked_in_the_same_way_alone_and_among_others() -> None:
    texts = [("a great film with good music and one scene",), ("awful plot , poor actors , no end to it",)]
    together = attack(count_words, texts, [1, 0])
    assert together == [attack(count_words, [text], [label])[0] for text, label in zip(texts, (1, 0), strict=True)]
