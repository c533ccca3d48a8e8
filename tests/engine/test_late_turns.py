"""Turns of a model that encodes the audio later than in live streams: they are at the same places."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
from tests.fakes import FRAME_RATE, FRAME_SAMPLES, ScriptRunner, drive, silence, sound_of, speech, tiny_tokenizer
from tests.models import stt_config

from slipstream.engine.options import SessionOptions, StreamFormat
from slipstream.engine.session import Session
from slipstream.events import EndOfTurn, Event, StartOfTurn, Turn
from slipstream.model.runner import Steering, StepOutput


class LateRunner(ScriptRunner):
    """Encodes the audio `lag` frames later: its text and pause heads are so much later."""

    def __init__(self, lag: int) -> None:
        super().__init__(delay_frames=6 + lag)
        self._late = deque([np.zeros((1, 4), np.float32)] * lag)

    def step(self, pcm_BS: np.ndarray, active_B: np.ndarray, steering: Steering | None = None) -> StepOutput:
        output = super().step(pcm_BS, active_B, steering)
        self._late.append(output.pause_BH)
        return replace(output, pause_BH=self._late.popleft())


def test_turns_are_where_they_are_in_live_streams_for_a_model_that_encodes_the_audio_later() -> None:
    audio_S = np.concatenate([speech(n, words=4) for n in range(4)] + [silence(12), sound_of("fox", 5)])

    def turns(lag: int) -> list[Event]:
        runner = LateRunner(lag)
        config = stt_config().model_copy(update={"lag_frames": lag})
        format = StreamFormat(tiny_tokenizer(), FRAME_SAMPLES, FRAME_RATE, runner.delay_frames, config=config)
        events = drive(Session(format, SessionOptions(partials=False)), runner, [audio_S])
        return [event for event in events if isinstance(event, (Turn, StartOfTurn, EndOfTurn))]

    expected = turns(0)
    assert sum(isinstance(event, EndOfTurn) for event in expected) == 3
    assert sorted(map(str, turns(20))) == sorted(map(str, expected))
