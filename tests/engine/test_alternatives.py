"""Other texts of words, from hypotheses that were given up."""

from __future__ import annotations

import math

import pytest

from slipstream.engine.alternatives import Rivals
from slipstream.events import Alternative, PartialWord, Word
from slipstream.hints.search import Rival


def test_a_word_gets_the_rivals_at_its_place_the_most_likely_first() -> None:
    rivals = Rivals(2)
    rivals.note([(1.0, Rival(0, "bear", 2.0)), (1.0, Rival(0, "pear", 1.0)), (1.08, Rival(1, "hair", 3.0))])
    rivals.note([(1.0, Rival(0, "bare", 0.0)), (4.0, Rival(0, "far", 0.0)), (1.0, Rival(0, "bear", 0.5))])
    partial, word, later = rivals.attach([PartialWord("ba", 1.0), Word("bare", 1.08, 1.5), Word("moon", 2.0, 2.5)])
    assert partial == PartialWord("ba", 1.0)
    total = 1 + math.exp(-0.5) + math.exp(-1) + math.exp(-3)
    assert isinstance(word, Word)
    assert word.alternatives == (
        Alternative("bear", pytest.approx(math.exp(-0.5) / total)),
        Alternative("pear", pytest.approx(math.exp(-1) / total)),
    )
    assert later == Word("moon", 2.0, 2.5)


def test_a_copy_is_independent() -> None:
    rivals = Rivals(1)
    copy = rivals.copy()
    copy.note([(1.0, Rival(0, "pear", 1.0))])
    assert rivals.attach([Word("bear", 1.0, 1.5)]) == [Word("bear", 1.0, 1.5)]
    assert copy.attach([Word("bear", 1.0, 1.5)]) != [Word("bear", 1.0, 1.5)]


def test_without_alternatives_nothing_is_kept() -> None:
    rivals = Rivals(0)
    rivals.note([(1.0, Rival(0, "pear", 1.0))])
    assert rivals.attach([Word("bear", 1.0, 1.5)]) == [Word("bear", 1.0, 1.5)]
