"""A step begins before the output of the step before is delivered, wherever that cannot change its frame."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import FRAME_SAMPLES, ScriptRunner, apply_ops, new_session, run, silence, speech, tiny_tokenizer

from slipstream.arrays import BoolArray, FloatArray
from slipstream.engine.engine import Engine
from slipstream.engine.flush import flush_steps
from slipstream.engine.live import LiveSession
from slipstream.engine.options import SessionOptions
from slipstream.engine.session import Session
from slipstream.engine.watchdog import WatchdogOptions
from slipstream.events import Event, Final, Step, Word
from slipstream.model.runner import State, StepOutput


class DeviceRunner(ScriptRunner):
    """Computes a step when it is launched, as a device does, and logs what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.savepoints: list[int] = []

    def launch(self, pcm_BS: FloatArray, active_B: BoolArray) -> Callable[[], StepOutput]:
        output = self.step(pcm_BS, active_B)
        number = self.steps
        self.log.append(f"launch {number}")

        def collect() -> StepOutput:
            self.log.append(f"collect {number}")
            return output

        return collect

    def savepoint(self, slot: int, steps: int) -> State:
        self.savepoints.append(steps)
        return self.snapshot(slot)


def order_of_calls(**options: object) -> list[str]:
    """Transcribe three frames that arrive together, and return the calls and deliveries in their order."""
    runner, ended = DeviceRunner(), threading.Event()
    sessions: list[LiveSession] = []

    def deliver() -> None:
        for event in sessions[0].take() if sessions else ():  # the first call is from within `open`
            if isinstance(event, Step):
                runner.log.append(f"deliver {event.index}")
                if event.index == 3:
                    ended.set()

    with Engine(runner, tiny_tokenizer()) as engine:
        sessions.append(engine.open(SessionOptions(partials=False, steps=True, **options), wake=deliver))  # type: ignore[arg-type]
        sessions[0].send(silence(3))
        assert ended.wait(10)
        return list(runner.log)


def test_the_next_step_is_launched_before_the_output_is_delivered() -> None:
    assert order_of_calls() == [
        *("launch 1", "collect 1", "launch 2", "deliver 1"),
        *("collect 2", "launch 3", "deliver 2", "collect 3", "deliver 3"),
    ]


@pytest.mark.parametrize("options", [{"low_latency": True}, {"flush_after_silence": 0.5}])
def test_a_session_whose_output_may_begin_a_flush_takes_it_first(options: dict[str, object]) -> None:
    one, two, three = (["launch " + n, "collect " + n, "deliver " + n] for n in "123")
    assert order_of_calls(**options) == one + two + three


def test_a_flush_saves_what_its_steps_overwrite() -> None:
    runner = DeviceRunner()
    with Engine(runner, tiny_tokenizer()) as engine, engine.open() as session:
        session.send(speech(1, words=2))
        session.flush()
        session.finish()
        assert any(isinstance(event, Final) for event in session)
    assert runner.savepoints == [flush_steps(runner.delay_frames)]


class InterruptedRunner(ScriptRunner):
    """Calls `interrupt` once a step has been launched; computes it when it is collected."""

    interrupt: Callable[[], None] | None = None

    def launch(self, pcm_BS: FloatArray, active_B: BoolArray) -> Callable[[], StepOutput]:
        if self.steps and (interrupt := self.interrupt) is not None:
            self.interrupt = None
            interrupt()
        return super().launch(pcm_BS, active_B)


def test_a_restart_does_not_change_a_slot_before_the_step_that_has_begun() -> None:
    audio_S = speech(1, words=3)
    words = []
    for interrupted in (False, True):
        runner = InterruptedRunner()
        with Engine(runner, tiny_tokenizer()) as engine, engine.open() as session:

            def restart() -> None:
                session.restart()
                session.send(audio_S)
                session.finish()

            if interrupted:
                runner.interrupt = restart
                session.send(silence(5))
            else:
                restart()
            words.append([event for event in session if isinstance(event, Word)])
    assert words[0] == words[1] != []


def run_overlapped(session: Session, runner: ScriptRunner) -> list[Event]:
    """Like `fakes.run`, with the next frame taken before the output where the session allows it."""
    pcm_BS, active_B = np.zeros((1, FRAME_SAMPLES), np.float32), np.ones(1, np.bool_)
    outputs: deque[StepOutput] = deque()
    while session.ready or outputs:
        while session.ready and len(outputs) < 2:
            apply_ops(session, runner)
            session.fill(pcm_BS[0])
            outputs.append(runner.step(pcm_BS, active_B))
        output = outputs.popleft()
        session.advance(int(output.token_B[0]), float(output.logprob_B[0]), output.pause_BH[0].tolist(), 0.0)
        if not outputs:
            apply_ops(session, runner)
    events, session.events = session.events, []
    return events


@settings(max_examples=60)
@given(st.data())
def test_events_do_not_depend_on_the_overlap(data: st.DataObject) -> None:
    options = {
        "low_latency": data.draw(st.booleans()),
        "flush_after_silence": data.draw(st.sampled_from([None, 0.4])),
        "watchdog": WatchdogOptions(mute_seconds=1.0, loop_repeats=3, patience_seconds=data.draw(st.integers(0, 1))),
    }
    failure = data.draw(st.sampled_from([{}, {"mute_after": 20}, {"loop_after": 15}]))
    lag_frames = data.draw(st.sampled_from([0, 4]))
    audio = speech(data.draw(st.integers(0, 50)), words=6)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(audio)), max_size=4)))
    actions = [data.draw(st.sampled_from(["flush", "mark", "restart", "none"])) for _ in cuts]
    results = []
    for advance in (run, run_overlapped):
        runner = ScriptRunner(**failure)
        session = new_session(runner, silence_frames=2, lag_frames=lag_frames, steps=True, **options)
        session.admit(0)
        events: list[Event] = []
        for start, end, action in zip([0, *cuts], [*cuts, len(audio)], [*actions, "none"], strict=True):
            session.push(audio[start:end])
            if action == "flush":
                session.flush(0.0)
            elif action == "mark":
                session.mark(end, 0.0)
            events += advance(session, runner)
            if action == "restart":
                session.restart()
        session.finish(0.0)
        results.append(events + advance(session, runner))
    assert results[0] == results[1]
    assert isinstance(results[0][-1], Final)


def test_a_restart_with_two_frames_in_the_model_ignores_both() -> None:
    runner = ScriptRunner()
    session = new_session(runner, steps=True)
    session.admit(0)
    session.push(silence(4))
    row_S = silence(1)
    apply_ops(session, runner)
    session.fill(row_S)
    assert session.ready
    session.fill(row_S)
    session.restart()
    session.events.clear()
    for _ in range(2):
        session.advance(3, -0.1, [0.0] * 4, 0.0)
    assert session.events == []
    session.push(silence(1))
    assert [event.index for event in run(session, runner) if isinstance(event, Step)] == [1]
