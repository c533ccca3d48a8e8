"""Models of the letters of languages."""

from __future__ import annotations

import math

import pytest

from slipstream.errors import ConfigError
from slipstream.language.letters import LetterModel, known_languages, letters


def test_the_letters_of_a_word_are_lower_case_and_without_punctuation() -> None:
    assert letters("\u00c9T\u00c9,") == letters("e\u0301te\u0301") == "\u00e9t\u00e9"
    assert letters("\u00ab aujourd\u2019hui \u00bb") == "aujourd'hui"
    assert letters("12!") == ""


def test_words_are_likelier_in_their_own_language() -> None:
    english, french = LetterModel.of("en"), LetterModel.of("fr")
    for word in ("the", "which", "knowing"):
        assert english.logprob(word) > french.logprob(word) + 2
    for word in ("les", "beaucoup", "travaillait"):
        assert french.logprob(word) > english.logprob(word) + 2


@pytest.mark.parametrize("language", known_languages())
def test_the_letters_after_each_beginning_are_a_distribution(language: str) -> None:
    model = LetterModel.of(language)
    alphabet = "abcdefghijklmnopqrstuvwxyz'-\u00e9\u00e8\u00ea\u00e0\u00e2\u00e7\u00ee\u00f4\u00fb\u00f9\u0153"
    for begun in ("", "q", "th", "vous"):
        before = model.logprob(begun, complete=False)
        following = [model.logprob(begun + letter, complete=False) for letter in alphabet] + [model.logprob(begun)]
        total = sum(math.exp(logprob - before) for logprob in following)
        # Other letters have the rest.
        assert 0.98 < total <= 1.0001


def test_a_word_may_go_on() -> None:
    model = LetterModel.of("en")
    assert model.logprob("stre", complete=False) > model.logprob("stre")


def test_a_language_without_a_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="language 'tlh' has no table of letters: expected en, fr"):
        LetterModel("tlh")
