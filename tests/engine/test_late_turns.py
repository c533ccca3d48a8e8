"""Turns of a model that encodes the audio later than in live streams: they are at the same places."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from tests.fakes import FRAME_RATE, FRAME_SAMPLES, ScriptRunner, drive, run, silence, sound_of, speech, tiny_tokenizer
from tests.models import stt_config

from slipstream.engine.options import SessionOptions, StreamFormat
from slipstream.engine.session import Session
from slipstream.events import EndOfTurn, Event, StartOfTurn, Turn
from slipstream.model.runner import State, Steering, StepOutput


class LateRunner(ScriptRunner):
    """Encodes the audio `lag` frames later: its text and pause heads are so much later."""

    def __init__(self, lag: int) -> None:
        super().__init__(delay_frames=6 + lag)
        self._late = deque([np.zeros((1, 4), np.float32)] * lag)

    def step(self, pcm_BS: np.ndarray, active_B: np.ndarray, steering: Steering | None = None) -> StepOutput:
        output = super().step(pcm_BS, active_B, steering)
        self._late.append(output.pause_BH)
        return replace(output, pause_BH=self._late.popleft())

    def snapshot(self, slot: int) -> State:
        return super().snapshot(slot), self._late.copy()

    def restore(self, slot: int, state: State) -> None:
        script, late = state
        super().restore(slot, script)
        self._late = late.copy()


AUDIO_S = np.concatenate([speech(n, words=4) for n in range(4)] + [silence(12), sound_of("fox", 5)])


def turns(lag: int, flushes: tuple[int, ...] = ()) -> list[Event]:
    """The turns of a model that encodes the audio `lag` frames later, with a flush after these numbers of samples."""
    runner = LateRunner(lag)
    config = stt_config().model_copy(update={"lag_frames": lag})
    format = StreamFormat(tiny_tokenizer(), FRAME_SAMPLES, FRAME_RATE, runner.delay_frames, config=config)
    session = Session(format, SessionOptions(partials=False))
    *pieces, last = np.split(AUDIO_S, flushes)
    events = drive(session, runner, [], finish=False)
    for piece in pieces:
        session.push(piece)
        session.flush(now=0.0)
        events += run(session, runner)
    session.push(last)
    session.finish(now=0.0)
    events += run(session, runner)
    return sorted((event for event in events if isinstance(event, (Turn, StartOfTurn, EndOfTurn))), key=str)


def test_turns_are_where_they_are_in_live_streams_for_a_model_that_encodes_the_audio_later() -> None:
    expected = turns(0)
    assert sum(isinstance(event, EndOfTurn) for event in expected) == 3
    assert turns(20) == expected


@pytest.mark.parametrize("lag", [20, 60])
def test_a_flush_before_an_end_of_turn_is_found_does_not_change_the_turns(lag: int) -> None:
    end, frame = len(AUDIO_S), FRAME_SAMPLES
    for flushes in ((end // 2,), (end - 20 * frame,), (end // 3, end - 8 * frame), (end,)):
        assert turns(lag, flushes) == turns(0, flushes) == turns(0)
