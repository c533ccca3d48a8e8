"""Audio that waits is encoded ahead: the events do not change, and the frames are those of the steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.fakes import (
    FRAME_SAMPLES,
    ScriptRunner,
    apply_ops,
    new_session,
    silence,
    sound_of,
    speech,
    tiny_tokenizer,
    words_of,
)

from slipstream.arrays import BoolArray, FloatArray
from slipstream.engine.engine import MAX_SESSIONS_AHEAD, Engine, StepReport
from slipstream.engine.options import SessionOptions, StreamFormat
from slipstream.engine.session import Session
from slipstream.engine.slots import Encode, SlotOperator
from slipstream.engine.turns import TurnOptions
from slipstream.errors import EngineError
from slipstream.events import Event
from slipstream.hints import Hints
from slipstream.model.runner import State, Steering, StepOutput

MOST = 5


class AheadRunner(ScriptRunner):
    """Checks that the frames of the steps are those that were encoded ahead."""

    max_ahead = MOST

    def __init__(self, slots: int = 1, loop_after: float = math.inf) -> None:
        super().__init__(slots, loop_after=loop_after)
        self.blocks: list[int] = []
        self.on_encode: Callable[[], object] | None = None
        self._ahead: list[list[FloatArray]] = [[] for _ in range(slots)]

    def encode(self, slots: Sequence[int], pcm_FS: FloatArray) -> None:
        assert 1 <= len(pcm_FS) <= MOST
        assert pcm_FS.dtype == np.float32
        self.blocks.append(len(pcm_FS))
        for slot in slots:
            assert not self._ahead[slot], "encoded frames are left"
            self._ahead[slot] = list(pcm_FS.copy())
        if self.on_encode is not None:
            self.on_encode()

    def step(self, pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None) -> StepOutput:
        for slot in np.flatnonzero(active_B):
            if self._ahead[slot]:
                np.testing.assert_array_equal(self._ahead[slot].pop(0), pcm_BS[slot])
        return super().step(pcm_BS, active_B, steering)

    def reset(self, slots: Sequence[int], first_frame: int = 0) -> None:
        for slot in slots:
            self._ahead[slot] = []
        super().reset(slots, first_frame)

    def snapshot(self, slot: int) -> State:
        return super().snapshot(slot), list(self._ahead[slot])

    def restore(self, slot: int, state: State) -> None:
        mine, self._ahead[slot] = state[0], list(state[1])
        super().restore(slot, mine)


Action = tuple[str, int]
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["push", "push", "push", "flush", "mark", "restart", "steps"]), st.integers(0, 9)),
    min_size=1,
    max_size=14,
)


def run(session: Session, runner: ScriptRunner, steps: float = math.inf) -> list[Event]:
    """`tests.fakes.run` of slot 0, as the engine does it: frames that are certain are encoded first."""
    pcm_BS = np.zeros((1, FRAME_SAMPLES), np.float32)
    while session.ready and steps > 0:
        apply_ops(session, runner)
        if (pcm_FS := session.encode_ahead(runner.max_ahead)) is not None:
            SlotOperator(runner).run([((0,), Encode(pcm_FS))])
        session.fill(pcm_BS[0])
        output = runner.step(pcm_BS, np.ones(1, bool))
        session.advance(int(output.token_B[0]), float(output.logprob_B[0]), output.pause_BH[0].tolist(), 0.0)
        apply_ops(session, runner)
        steps -= 1
    events, session.events = session.events, []
    return events


def play(runner: ScriptRunner, actions: list[Action], **options: Any) -> list[Event]:
    session = new_session(runner, **options)
    session.admit(0)
    events: list[Event] = []
    for action, number in actions:
        if action == "push":
            session.push(speech(number, words=number // 2))
        elif action == "flush":
            session.flush(0.0)
        elif action == "flush now":
            session.flush(0.0, buffered=False)
        elif action == "mark":
            session.mark(number, 0.0)
        elif action == "restart":
            session.restart()
        elif action == "low latency":
            session.set_turns(TurnOptions(head=number % 4), low_latency=number > 4)
        events += run(session, runner, steps=number if action == "steps" else 0)
    session.finish(0.0)
    return events + run(session, runner)


@example(
    actions=[("push", 9), ("flush", 0), ("push", 8)],
    low_latency=False,
    after_silence=None,
    loop_after=math.inf,
    lag=0,
)
@example(actions=[("push", 9), ("push", 8)], low_latency=False, after_silence=None, loop_after=30, lag=0)
@example(actions=[("push", 9), ("push", 8)], low_latency=False, after_silence=None, loop_after=30, lag=4)
@given(
    actions=ACTIONS,
    low_latency=st.booleans(),
    after_silence=st.sampled_from([None, 0.4]),
    loop_after=st.sampled_from([math.inf, 30]),  # the watchdog then resets the model
    lag=st.sampled_from([0, 4]),  # and gives it the last frames again
)
@settings(max_examples=80, deadline=None)
def test_encoding_ahead_changes_no_event(
    actions: list[Action], low_latency: bool, after_silence: float | None, loop_after: float, lag: int
) -> None:
    options = {"low_latency": low_latency, "flush_after_silence": after_silence, "lag_frames": lag}
    expected = play(ScriptRunner(loop_after=loop_after), actions, **options)
    assert play(AheadRunner(loop_after=loop_after), actions, **options) == expected


@given(actions=ACTIONS, extra=st.lists(st.tuples(st.sampled_from(["flush now", "low latency"]), st.integers(0, 9))))
@settings(max_examples=80, deadline=None)
def test_a_flush_of_what_the_model_has_includes_the_encoded_frames(actions: list[Action], extra: list[Action]) -> None:
    """Its position depends on what was encoded, the words do not."""
    mixed = [action for pair in zip_longest(actions, extra) for action in pair if action is not None]
    words = [(word.text, word.start) for word in words_of(play(AheadRunner(), mixed))]
    assert words == [(word.text, word.start) for word in words_of(play(ScriptRunner(), mixed))]


def test_waiting_audio_and_flushes_are_encoded_in_blocks() -> None:
    runner = AheadRunner()
    play(runner, [("push", 9)])
    assert runner.blocks.count(MOST) > 3
    assert min(runner.blocks) >= 2


def test_live_audio_is_not_encoded_ahead() -> None:
    runner = AheadRunner()
    session = new_session(runner)
    session.admit(0)
    for frame in range(20):
        session.push(sound_of("fox", 1) if frame % 3 else silence(1))
        run(session, runner)
    assert runner.blocks == []


def test_an_engine_encodes_ahead_for_a_session_alone() -> None:
    audio_S = speech(3, words=12)
    written = []
    for runner in (ScriptRunner(), AheadRunner()):
        with Engine(runner, tiny_tokenizer()) as engine, engine.open() as session:
            session.send(audio_S)
            session.finish()
            written.append(words_of(session))
        if isinstance(runner, AheadRunner):
            assert MOST in runner.blocks
    assert written[0] == written[1]


def test_an_engine_does_not_encode_ahead_for_many_sessions() -> None:
    slots = MAX_SESSIONS_AHEAD + 1
    runner = AheadRunner(slots)
    scripted = [Session(_format(runner), SessionOptions()) for _ in range(slots)]
    for slot, session in enumerate(scripted):
        session.admit(slot)
        session.push(speech(slot, words=3))
    with Engine(runner, tiny_tokenizer()) as engine:
        step = engine._fill(scripted, 0.0)
        assert not any(isinstance(op, Encode) for _, op in step.ops)
        step = engine._fill(scripted[:2], 0.0)
        assert [len(op.pcm_FS) for _, op in step.ops if isinstance(op, Encode)] == [MOST, MOST]


def test_a_search_that_begins_after_a_known_prompt_has_no_frames_of_a_stream_that_was_cancelled() -> None:
    runner = AheadRunner(slots=2)
    options = SessionOptions(hints=Hints(prompt="the quick brown fox", beam=2))
    with Engine(runner, tiny_tokenizer()) as engine:
        for cancelled in (False, True, False):
            with engine.open(options) as session:
                runner.on_encode = session.cancel if cancelled else None
                session.send(speech(3, words=12))
                if not cancelled:
                    session.finish()
                assert bool(words_of(session)) != cancelled


def test_a_model_that_fails_to_encode_ends_every_session() -> None:
    def fail() -> None:
        raise RuntimeError("the device is on fire")

    runner = AheadRunner()
    runner.on_encode = fail
    with Engine(runner, tiny_tokenizer()) as engine, engine.open() as session:
        session.send(speech(3, words=3))
        with pytest.raises(EngineError, match="the device is on fire"):
            list(session)


def test_the_reported_time_of_a_step_includes_what_it_encodes() -> None:
    runner, reports = AheadRunner(), list[StepReport]()
    runner.on_encode = lambda: time.sleep(0.02)
    with Engine(runner, tiny_tokenizer(), observer=reports.append) as engine, engine.open() as session:
        session.send(speech(3, words=3))
        session.finish()
        list(session)
    assert sum(report.seconds for report in reports) > 0.02 * len(runner.blocks) > 0


def _format(runner: ScriptRunner) -> StreamFormat:
    return StreamFormat.of(runner, tiny_tokenizer())
