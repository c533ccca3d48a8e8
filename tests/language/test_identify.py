"""Languages of words and of sentences."""

from __future__ import annotations

import pytest

from slipstream.events import Word
from slipstream.language.identify import Guess, Identifier, LanguageTracker, candidates, primary

ENGLISH = ["the", "old", "man", "walked", "slowly", "along", "the", "river"]
FRENCH = ["le", "vieil", "homme", "marchait", "lentement", "au", "bord", "de", "la", "rivière"]


def _tagged(languages: tuple[str, ...], words: list[str]) -> list[Word]:
    tracker = LanguageTracker(languages)
    return [tracker.tag(Word(word, i, i + 1)) for i, word in enumerate(words)]


def test_a_list_of_languages_may_have_regions_and_auto() -> None:
    assert candidates(["fr-CA", "fr", "en_US"]) == ("fr", "en")
    assert candidates(["auto"]) == ("en", "fr")
    assert primary("pt-BR") == "pt"


@pytest.mark.parametrize(("language", "words"), [("en", ENGLISH), ("fr", FRENCH)])
def test_a_sentence_is_in_its_language(language: str, words: list[str]) -> None:
    guess = Identifier(["auto"]).identify(words)
    assert guess is not None
    assert guess.language == language
    assert guess.confidence > 0.99


def test_a_single_language_is_given() -> None:
    assert Identifier(["de"]).identify(ENGLISH) == Guess("de", 1.0)
    assert {(word.language, word.language_confidence) for word in _tagged(("de",), ENGLISH)} == {("de", 1.0)}


def test_a_language_without_a_table_is_not_distinguished_from_others() -> None:
    assert Identifier(["en", "de"]).identify(ENGLISH) is None
    assert {word.language for word in _tagged(("en", "de"), ENGLISH)} == {None}


def test_without_languages_nothing_is_tagged() -> None:
    assert Identifier([]).identify(ENGLISH) is None
    assert {word.language for word in _tagged((), ENGLISH)} == {None}


def test_a_word_is_decided_with_those_before_it() -> None:
    tags = [word.language for word in _tagged(("en", "fr"), [*ENGLISH, *FRENCH])]
    assert tags[: len(ENGLISH)] == ["en"] * len(ENGLISH)
    assert tags[-6:] == ["fr"] * 6
    name = _tagged(("en", "fr"), [*FRENCH, "Churchill"])[-1]
    assert name.language == "fr"


def test_a_word_without_letters_is_no_evidence() -> None:
    identifier = Identifier(["en", "fr"])
    assert identifier.evidence("1789") == [0.0, 0.0]
    guess = identifier.identify(["1789"])
    assert guess is not None
    assert guess.confidence == 0.5


def test_the_languages_of_a_stream_can_change() -> None:
    tracker = LanguageTracker(["fr"])
    assert tracker.tag(Word("the", 0, 1)).language == "fr"
    tracker.set_languages(["en", "fr"])
    assert tracker.tag(Word("the", 1, 2)).language == "en"
    assert tracker.identify([Word(word, 0, 1) for word in FRENCH]) == Identifier(["en", "fr"]).identify(FRENCH)
