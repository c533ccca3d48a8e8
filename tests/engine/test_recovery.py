"""Sessions whose watchdog resets the model."""

from __future__ import annotations

import numpy as np
import pytest
from tests.engine.test_session import SAMPLE_RATE, kinds, texts_and_starts, transcribed
from tests.fakes import FRAME_SAMPLES, ScriptRunner, drive, new_session, silence, sound_of, words_of

from slipstream.engine.watchdog import WatchdogOptions
from slipstream.events import EndOfTurn, Event, Final, Recovered, Step


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


@pytest.mark.parametrize("chunk", [100 * FRAME_SAMPLES, 5000])
def test_a_reset_loses_no_words_of_a_recording_that_were_still_to_come(chunk: int) -> None:
    words = ["fox", "dog", "sea", "word"] * 16
    audio_S = np.concatenate([*(part for word in words for part in (sound_of(word, 10), silence(7))), silence(0.5)])
    chunks = np.array_split(audio_S, range(chunk, len(audio_S), chunk))

    def driven(runner: ScriptRunner) -> list[Event]:
        options = WatchdogOptions(mute_seconds=4.0)
        return drive(new_session(runner, lag_frames=50, steps=True, watchdog=options), runner, chunks)

    sound, events = driven(ScriptRunner(delay_frames=70)), driven(ScriptRunner(delay_frames=70, mute_after=250))
    recovered = [event for event in events if isinstance(event, Recovered)]
    assert len(recovered) >= 2
    expected, found = texts_and_starts(words_of(sound)), texts_and_starts(words_of(events))
    assert len(expected) == len(words)
    pending = [word for word in expected for event in recovered if -5.6 <= word[1] - event.time < 0]
    assert len(pending) >= 4 * len(recovered)
    assert set(pending) <= set(found)
    # A word that was being spoken where the model begins again starts there for it.
    assert len(set(found) - set(expected)) <= len(recovered)
    assert [start for _, start in found] == sorted(start for _, start in found)

    # Frames that the model gets again are counted once.
    steps = [event.index for event in events if isinstance(event, Step)]
    assert steps == [event.index for event in sound if isinstance(event, Step)]
    ends, all_ends = ([event for event in one if isinstance(event, EndOfTurn)] for one in (events, sound))
    assert len(ends) >= len(all_ends) - len(recovered)
    assert set(ends) <= set(all_ends)
    assert events[-1] == sound[-1]


def test_live_streams_keep_no_audio() -> None:
    assert new_session(ScriptRunner(), lag_frames=4).format.kept_frames == 6
    assert new_session(ScriptRunner()).format.kept_frames == 0


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
