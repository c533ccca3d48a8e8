"""Sessions whose watchdog resets the model."""

from __future__ import annotations

import numpy as np
from tests.engine.test_session import SAMPLE_RATE, kinds, texts_and_starts, transcribed
from tests.fakes import ScriptRunner, drive, new_session, silence, sound_of, words_of

from slipstream.engine.watchdog import WatchdogOptions
from slipstream.events import Final, Recovered


def long_speech() -> np.ndarray:
    """Half a minute of words with pauses."""
    words = ["fox", "dog", "sea", "word"] * 3
    return np.concatenate([piece for word in words for piece in (sound_of(word, 25), silence(7))])


def test_a_model_without_text_is_reset_at_a_pause_and_later_words_keep_their_times() -> None:
    runner = ScriptRunner(mute_after=100, pause_heads=0)
    options = WatchdogOptions(mute_seconds=4.0)
    events = drive(new_session(runner, watchdog=options), runner, [long_speech()])
    recovered = [event for event in events if isinstance(event, Recovered)]
    assert recovered
    assert "no text for 4 s" in recovered[0].reason
    expected = {(word.text, word.start) for word in transcribed(long_speech())}
    words = texts_and_starts(words_of(events))
    after = [word for word in words if word[1] >= recovered[0].time]
    assert len(after) >= 3
    # A word that was being spoken at the reset starts there for the model.
    assert len(set(words) - expected) <= len(recovered)
    assert [start for _, start in words] == sorted(start for _, start in words)
    assert events[-1] == Final(len(long_speech()) / SAMPLE_RATE, 0.0)


def test_a_model_that_repeats_itself_is_reset() -> None:
    runner = ScriptRunner(loop_after=120)
    events = drive(new_session(runner), runner, [long_speech()])
    recovered = [event for event in events if isinstance(event, Recovered)]
    assert recovered
    assert "times in a row" in recovered[0].reason


def test_the_watchdog_can_be_turned_off() -> None:
    runner = ScriptRunner(mute_after=100)
    assert Recovered not in kinds(drive(new_session(runner, watchdog=None), runner, [long_speech()]))


def test_a_working_model_is_not_reset() -> None:
    runner = ScriptRunner()
    assert Recovered not in kinds(drive(new_session(runner), runner, [long_speech()]))


def test_a_reset_model_gets_its_silence_prefix_again() -> None:
    runner = ScriptRunner(mute_after=120, pause_heads=0)
    options = WatchdogOptions(mute_seconds=4.0)
    events = drive(new_session(runner, silence_frames=13, watchdog=options), runner, [long_speech()])
    expected = {(word.text, word.start) for word in transcribed(long_speech())}
    recovered = [event for event in events if isinstance(event, Recovered)]
    assert len(set(texts_and_starts(words_of(events))) - expected) <= len(recovered)
