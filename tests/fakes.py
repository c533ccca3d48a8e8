"""Sessions driven without an engine, on the fakes of `slipstream.testing`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.engine.options import SessionOptions, StreamFormat
from slipstream.engine.session import Session
from slipstream.engine.slots import SlotOperator
from slipstream.events import Event, Word
from slipstream.testing import (
    FRAME_RATE,
    FRAME_SAMPLES,
    LEXICON,
    SENTENCES,
    ScriptRunner,
    silence,
    small_config,
    sound_of,
    speech,
    tiny_tokenizer,
    tokenizer_path,
    tokenizer_proto,
)

__all__ = [
    "FRAME_RATE",
    "FRAME_SAMPLES",
    "LEXICON",
    "SENTENCES",
    "ScriptRunner",
    "silence",
    "sound_of",
    "speech",
    "tiny_tokenizer",
    "tokenizer_path",
    "tokenizer_proto",
]

_OPERATORS: WeakKeyDictionary[Session, SlotOperator] = WeakKeyDictionary()


def drive(
    session: Session, runner: ScriptRunner, chunks: Iterable[FloatArray], finish: bool = True, slot: int = 0
) -> list[Event]:
    """Run one session without engine or thread, chunk by chunk, and return all its events."""
    session.admit(slot)
    events: list[Event] = []
    for chunk in chunks:
        session.push(chunk)
        events += run(session, runner)
    if finish:
        session.finish(now=0.0)
        events += run(session, runner)
    return events


def run(session: Session, runner: ScriptRunner, now: float = 0.0, steps: float = math.inf) -> list[Event]:
    """Step one session until it has nothing to do, at most `steps` times, and return its new events."""
    assert session.slot is not None
    pcm_BS = np.zeros((runner.slots, FRAME_SAMPLES), np.float32)
    active_B = np.arange(runner.slots) == session.slot
    while session.ready and steps > 0:
        apply_ops(session, runner)
        session.fill(pcm_BS[session.slot])
        output = runner.step(pcm_BS, active_B)
        session.advance(
            int(output.token_B[session.slot]),
            float(output.logprob_B[session.slot]),
            output.pause_BH[session.slot].tolist(),
            now,
        )
        apply_ops(session, runner)
        steps -= 1
    events, session.events = session.events, []
    return events


def apply_ops(session: Session, runner: ScriptRunner) -> None:
    operator = _OPERATORS.setdefault(session, SlotOperator(runner))
    operator.run([(session.slots, op) for op in session.take_ops()])


def new_session(runner: ScriptRunner, silence_frames: int = 0, lag_frames: int = 0, **options: Any) -> Session:
    """Create a session for this runner, without partial words. `lag_frames`: of a larger lookahead, for recordings."""
    format = StreamFormat(tiny_tokenizer(), FRAME_SAMPLES, FRAME_RATE, runner.delay_frames, silence_frames)
    if lag_frames:
        config = small_config(text_vocab=tiny_tokenizer().vocab_size).model_copy(update={"lag_frames": lag_frames})
        format = replace(format, config=config)
    return Session(format, SessionOptions(**({"partials": False} | options)))


def words_of(events: Iterable[Event]) -> list[Word]:
    return [event for event in events if isinstance(event, Word)]


def random_chunks(audio_S: FloatArray, random: np.random.Generator, typical: float) -> Iterator[FloatArray]:
    """Cut audio into pieces of random length, some of them empty."""
    position = 0
    while position < len(audio_S):
        size = int(random.exponential(typical))
        yield audio_S[position : position + size]
        position += size
