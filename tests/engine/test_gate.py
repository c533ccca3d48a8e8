from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import ScriptRunner, drive, new_session, speech, words_of

from slipstream.checkpoints.presets import PRESETS
from slipstream.engine.gate import ConfidenceGate
from slipstream.engine.options import SessionOptions
from slipstream.engine.session import Session
from slipstream.errors import ConfigError
from slipstream.events import OpenWord, PartialWord, Word


def passed(gate: ConfidenceGate, *confidences: float, start: float = 10.0) -> list[bool]:
    """Which of these words, one after the other, pass."""
    words = [Word("w", start + 0.3 * i, start + 0.3 * i + 0.2, c) for i, c in enumerate(confidences)]
    return [gate.passes(word) for word in words]


def test_words_of_low_confidence_one_after_the_other_are_withheld() -> None:
    assert passed(ConfidenceGate(0.4), 0.1, 0.2, 0.3, 0.1) == [False] * 4


def test_a_doubtful_word_among_confident_ones_passes() -> None:
    assert passed(ConfidenceGate(0.4), 0.9, 0.05, 0.9, 0.05, 0.9) == [True] * 5


def test_a_confident_word_after_withheld_ones_does_not_open_the_gate() -> None:
    assert passed(ConfidenceGate(0.4), 0.1, 0.1, 0.1, 0.6) == [False] * 4


def test_the_gate_starts_again_after_a_pause() -> None:
    gate = ConfidenceGate(0.4)
    assert passed(gate, 0.1, 0.1, 0.1) == [False] * 3
    assert passed(gate, 0.2, start=20.0) == [True]
    gate = ConfidenceGate(0.4)
    assert passed(gate, 1.0, 1.0, 1.0) == [True] * 3
    assert passed(gate, 0.1, start=20.0) == [False]


@given(st.floats(0.01, 0.9), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 4)), max_size=30))
def test_a_word_that_was_shown_passes(threshold: float, words: list[tuple[float, float]]) -> None:
    gate, time = ConfidenceGate(threshold), 0.0
    for confidence, gap in words:
        time += gap
        shown = gate.passes(PartialWord("w", time))
        opened = gate.passes(OpenWord("word", time, confidence))
        whole = gate.passes(Word("word", time, time + 0.2, confidence))
        assert opened == whole
        assert whole or not shown
        time += 0.2


@given(st.lists(st.floats(0, 1), max_size=30))
def test_a_threshold_of_0_passes_all(confidences: list[float]) -> None:
    assert all(passed(ConfidenceGate(0), *confidences))
    assert ConfidenceGate(0).passes(PartialWord("w", 0.0))


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_threshold_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"min_confidence=.* must be at least 0 and below 1"):
        SessionOptions(min_confidence=value)


def test_words_below_the_least_confidence_are_withheld_with_all_their_events() -> None:
    audio_S = speech(3, words=40)
    plain = words_of(drive(new_session(runner := ScriptRunner()), runner, [audio_S]))
    gate = ConfidenceGate(0.6)
    kept = [word for word in plain if gate.passes(word)]
    assert 0 < len(kept) < len(plain)
    events = drive(new_session(runner := ScriptRunner(), min_confidence=0.6), runner, [audio_S])
    assert words_of(events) == kept
    opened = [(event.text, event.start) for event in events if isinstance(event, OpenWord)]
    assert opened == [(word.text, word.start) for word in kept]


def test_the_least_confidence_of_the_session_replaces_that_of_the_model() -> None:
    audio_S = speech(3, words=40)
    format = new_session(runner := ScriptRunner()).format
    format = replace(format, config=PRESETS["kyutai/stt-1b-en_fr"].model_copy(update={"min_confidence": 0.9}))
    counts = [
        len(words_of(drive(Session(format, SessionOptions(min_confidence=least)), runner, [audio_S])))
        for least in (None, 0.0)
    ]
    assert counts[0] < counts[1] == 40
