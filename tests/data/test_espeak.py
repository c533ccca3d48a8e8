"""espeak-ng: languages, voices, and the words that phones belong to."""

from __future__ import annotations

import ctypes.util
import random

import numpy as np
import pytest

from slipstream.data.espeak import Espeak, _owners, phones_of
from slipstream.data.synthesis import Voice
from slipstream.errors import BackendError, SlipstreamError

needs_espeak = pytest.mark.skipif(ctypes.util.find_library("espeak-ng") is None, reason="espeak-ng is not installed")


@needs_espeak
def test_a_language_that_espeak_does_not_have_is_reported() -> None:
    with pytest.raises(SlipstreamError, match="espeak-ng has no voice 'xx'"):
        phones_of("a word", "xx")


@needs_espeak
def test_a_voice_that_is_missing_ends_a_synthesis() -> None:
    with pytest.raises(BackendError, match="espeak-ng has no voice 'xx'"):
        Espeak("xx").speak("a word", Voice("xx"))
    with pytest.raises(BackendError, match="espeak-ng has no voice 'xx'"):
        Espeak("xx").speak("a word", Voice("xx+max"))


@needs_espeak
def test_a_language_that_is_in_no_table_has_phones() -> None:
    assert [len(word) > 0 for word in phones_of("jeden dobry pies", "pl")] == [True, True, True]


def test_voices_that_are_named_replace_the_accents() -> None:
    rng, choices = np.random.default_rng(0), random.Random(0)
    names = {Espeak("de", ["mb-de1", "de"]).draw("de", 1.0, rng, choices).name for _ in range(50)}
    assert "mb-de1" in names
    assert all(name == "mb-de1" or name.split("+")[0] == "de" for name in names)


def test_a_phone_without_a_position_belongs_to_the_word_before_it() -> None:
    assert _owners([(0, 3), (4, 7)], [0, -1, -1, 4, -1, 9]) == [0, 0, 0, 1, 1, None]
