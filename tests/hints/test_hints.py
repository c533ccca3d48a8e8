"""The hints of a session."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slipstream.errors import ConfigError
from slipstream.hints import MAX_KEYWORDS, Hints, Keyword


def test_keywords_may_be_strings_or_weighted_and_hints_are_values() -> None:
    hints = Hints(keywords=["Ngaio", Keyword("Poirot", 2.0)], languages=["en"])
    assert hints.phrases == (Keyword("Ngaio"), Keyword("Poirot", 2.0))
    assert hints.languages == ("en",)
    assert hash(hints) == hash(replace(hints))
    assert replace(hints, beam=2).phrases == hints.phrases


def test_a_weight_follows_a_colon() -> None:
    assert Keyword.parse(" Poirot:2 ") == Keyword("Poirot", 2.0)
    assert Keyword.parse("Poirot") == Keyword("Poirot")
    assert Keyword.parse("Alien: Covenant") == Keyword("Alien: Covenant")
    with pytest.raises(ConfigError, match="weight=20"):
        Keyword.parse("Poirot:20")


def test_only_hints_that_need_candidates_steer() -> None:
    assert not Hints(prompt="Dear", languages=["fr"], delay=1.0).steers
    assert Hints(keywords=["Ngaio"]).steers
    assert Hints(beam=2).steers
    assert Hints(alternatives=3).steers


def test_the_beam_of_a_model_is_that_of_hints_without_one() -> None:
    assert Hints().width == 1
    assert Hints().with_beam(2).beam == 2
    assert Hints(beam=1).with_beam(2).width == 1
    assert Hints(beam=4).with_beam(2).width == 4
    assert Hints(alternatives=3).with_beam(2).width == 3


def test_text_like_the_speech_has_a_beam_of_two() -> None:
    assert Hints(lm="ten words").width == Hints(lm="ten words").with_beam(1).width == 2
    assert Hints(lm="ten words").with_beam(4).width == 4
    with pytest.raises(ConfigError, match="lm needs a beam of at least 2"):
        Hints(lm="ten words", beam=1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"keywords": "Ngaio"}, "lists of strings"),
        ({"languages": "en"}, "lists of strings"),
        ({"keywords": [" "]}, "1 to 200 characters"),
        ({"keywords": ["x"] * (MAX_KEYWORDS + 1)}, "1001 keywords: at most 1000"),
        ({"prompt": "x" * 4001}, "4001 characters: at most 4000"),
        ({"languages": ["en", "english"]}, "language 'english': expected an ISO 639-1 code such as 'en', or 'auto'"),
        ({"languages": ["../en"]}, "language '../en': expected an ISO 639-1 code"),
        ({"beam": 0}, "beam=0 must be a whole number from 1 to 8"),
        ({"alternatives": 9}, "alternatives=9 must be a whole number from 1 to 8"),
        ({"beam": 2.5}, "beam=2.5 must be a whole number from 1 to 8"),
        ({"delay": 0.0}, "delay=0 must be above 0"),
        ({"prompt": 5}, "prompt must be text, not 5"),
        ({"prompt": "caf\udce9"}, r"prompt: character 4, '\\udce9', is half of a surrogate pair"),
        ({"lm": "\ud800", "beam": 2}, r"lm: character 1, '\\ud800', is half of a surrogate pair"),
    ],
)
def test_invalid_hints_are_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Hints(**fields)  # type: ignore[arg-type]


def test_keywords_that_are_no_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="keyword must be text, not 5"):
        _ = Hints(keywords=[5]).phrases  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"keyword: character 1, '\\ud800', is half of a surrogate pair"):
        Keyword("\ud800")


def test_invalid_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="weight=0 must be above 0 and up to 10"):
        Keyword("Ngaio", 0.0)
