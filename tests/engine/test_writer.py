"""The shift of a model's words, in whole sessions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.fakes import FRAME_SAMPLES, ScriptRunner, drive, new_session, random_chunks, run, silence, speech, words_of

from slipstream.arrays import FloatArray
from slipstream.checkpoints.presets import PRESETS
from slipstream.engine.options import SessionOptions
from slipstream.engine.session import Session
from slipstream.events import EndOfTurn, Event, Final, Flushed, OpenWord, PartialWord, Turn, Word
from slipstream.hints import Hints

SECONDS = 1 / 12.5
AUDIO_S = np.concatenate([speech(3, words=8), silence(30), speech(4, words=8), silence(30)])


def session_with(shift: float, runner: ScriptRunner, **options: object) -> Session:
    format = new_session(runner).format
    config = PRESETS["kyutai/stt-1b-en_fr"].model_copy(update={"word_shift_seconds": shift})
    return Session(replace(format, config=config), SessionOptions(**options))


def transcribed(shift: float, chunks: list[FloatArray] | None = None, **options: object) -> list[Event]:
    runner = ScriptRunner(delay_frames=6)
    return drive(session_with(shift, runner, **options), runner, chunks or [AUDIO_S])


@pytest.mark.parametrize("shift", [0.12, -0.12, 0.4])
def test_all_times_of_words_have_the_shift_and_no_others(shift: float) -> None:
    plain, shifted = transcribed(0.0), transcribed(shift)
    end = len(AUDIO_S) / FRAME_SAMPLES * SECONDS
    assert len(words_of(plain)) == 16

    def moved(time: float) -> object:
        return pytest.approx(min(max(0.0, time + shift), end))

    assert [(word.text, word.confidence) for word in words_of(shifted)] == [
        (word.text, word.confidence) for word in words_of(plain)
    ]
    for before, after in zip(words_of(plain), words_of(shifted), strict=True):
        assert (after.start, after.end) == (moved(before.start), moved(before.end))
    for kind in (PartialWord, OpenWord):
        starts = [[event.start for event in events if isinstance(event, kind)] for events in (plain, shifted)]
        assert starts[1] == [moved(start) for start in starts[0]]
    others = [
        [event for event in events if not isinstance(event, (Word, PartialWord, OpenWord, Turn))]
        for events in (plain, shifted)
    ]
    assert others[0] == others[1]
    assert any(isinstance(event, Final) for event in others[1])


@pytest.mark.parametrize("shift", [0.0, 0.12, -0.12])
def test_turns_begin_and_end_with_their_words(shift: float) -> None:
    events = transcribed(shift)
    ends = [event.time for event in events if isinstance(event, EndOfTurn)]
    turns = [event for event in events if isinstance(event, Turn)]
    expected, first = [], 0.0
    for end in [*ends, math.inf]:  # a turn has the words that start before its end was found
        words = [word for word in words_of(events) if first <= word.start < end]
        first = end
        expected += [Turn(words[0].start, words[-1].end)] if words else []
    assert turns == expected
    assert len(turns) >= 2


def test_chunks_do_not_matter_for_shifted_words() -> None:
    chunks = list(random_chunks(AUDIO_S, np.random.default_rng(1), typical=700))
    assert words_of(transcribed(0.12, chunks)) == words_of(transcribed(0.12))


@pytest.mark.parametrize("shift", [0.12, -0.12])
def test_flushes_repeat_no_shifted_word(shift: float) -> None:
    runner = ScriptRunner(delay_frames=6)
    session = session_with(shift, runner)
    events = drive(session, runner, [], finish=False)
    for chunk_S in np.array_split(AUDIO_S, 9):
        session.push(chunk_S)
        events += run(session, runner)
        session.flush(now=0.0)
        events += run(session, runner)
    session.finish(now=0.0)
    events += run(session, runner)
    words = words_of(events)
    assert [word.text for word in words] == [word.text for word in words_of(transcribed(shift))]
    position = 0.0
    for event in events:
        if isinstance(event, Flushed):
            assert position <= event.time + 1e-9  # no word ends after the audio that was flushed
        elif isinstance(event, Word):
            assert position <= event.start <= event.end
            position = event.end


def test_a_search_writes_the_same_shifted_words() -> None:
    hints = Hints(keywords=["zzz"])
    plain, shifted = (words_of(transcribed(shift, hints=hints)) for shift in (0.0, 0.12))
    assert [word.start for word in shifted] == [pytest.approx(word.start + 0.12) for word in plain]
