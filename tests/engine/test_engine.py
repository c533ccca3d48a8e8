from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tests.fakes import (
    FRAME_SAMPLES,
    ScriptRunner,
    drive,
    new_session,
    random_chunks,
    silence,
    sound_of,
    speech,
    tiny_tokenizer,
    words_of,
)

from slipstream.engine import port
from slipstream.engine.engine import Engine, StepReport
from slipstream.engine.live import LiveSession
from slipstream.engine.options import SessionOptions
from slipstream.errors import AudioError, CheckpointError, EngineError, Overloaded, SessionClosed
from slipstream.events import Event, Final, Flushed, MarkerReached, PartialWord, Ready, Step, Word
from slipstream.model.runner import StepOutput

QUIET = SessionOptions(partials=False)
GENEROUS = 30.0
"""Seconds that no test comes near to unless something hangs."""


@pytest.fixture
def start() -> Iterator[Callable[..., Engine]]:
    """Start engines, and stop them when the test is over."""
    engines: list[Engine] = []

    def start(runner: ScriptRunner, **options: object) -> Engine:
        engines.append(Engine(runner, tiny_tokenizer(), **options))  # type: ignore[arg-type]
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def solo(audio_S: np.ndarray, **options: object) -> list[Word]:
    runner = ScriptRunner()
    return words_of(drive(new_session(runner, **options), runner, [audio_S]))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + GENEROUS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def asleep(engine: Engine) -> bool:
    return engine._sessions.idle


# ---------------------------------------------------------------------------------------------------------- laws


def test_thirty_two_sessions_with_stalls_and_cancels_each_transcribe_as_if_alone(
    start: Callable[..., Engine],
) -> None:
    runner = ScriptRunner(slots=12)
    engine = start(runner)
    heard: dict[int, list[Event]] = {}
    dying = {5, 9, 14, 20, 21, 27}

    def live(number: int) -> None:
        random = np.random.default_rng(number)
        time.sleep(random.uniform(0, 0.2))
        session = engine.open(QUIET, wait=GENEROUS)
        chunks = list(random_chunks(speech(number, words=8), random, typical=random.choice([300, 1920, 9000])))
        death = random.integers(len(chunks)) if number in dying else len(chunks)
        for chunk in chunks[:death]:
            session.send(chunk)
            if random.random() < 0.05:
                time.sleep(random.uniform(0, 0.02))
            if random.random() < 0.02:
                session.flush()
        if number in dying:
            session.cancel() if number % 2 else None  # the others are just forgotten
        else:
            session.finish()
            heard[number] = list(session)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GENEROUS)
    assert heard.keys() == set(range(32)) - dying
    for number, events in heard.items():
        expected = solo(speech(number, words=8))
        flushed_by_hand = sum(isinstance(event, Flushed) for event in events) > 1
        if flushed_by_hand:
            assert [word.text for word in words_of(events)] == [word.text for word in expected]
        else:
            assert words_of(events) == expected
    gc.collect()
    engine.open(QUIET).cancel()
    assert engine.active == engine.waiting == 0
    assert runner.threads == {engine._thread.ident}


def test_other_sessions_do_not_change_the_words(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner(slots=3))
    audio_S = speech(1, words=10)
    with engine.open(QUIET) as session:
        for number, chunk in enumerate(np.array_split(audio_S, 20)):
            with engine.open(QUIET) as neighbour:
                neighbour.send(speech(number, words=2))
                session.send(chunk)
        session.finish()
        assert words_of(session) == solo(audio_S)


def test_the_order_of_events_is_that_of_the_stream(start: Callable[..., Engine]) -> None:
    with start(ScriptRunner()).open() as session:
        session.send(speech(3, words=6))
        session.finish()
        events = list(session)
    assert isinstance(events[0], Ready)
    assert isinstance(events[-1], Final)
    starts = [event.start for event in events if isinstance(event, (PartialWord, Word))]
    assert starts == sorted(starts)


# --------------------------------------------------------------------------------------------------------- slots


def test_a_full_engine_is_overloaded_or_waits_for_a_limited_time(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner(slots=1))
    with engine.open(QUIET) as holder:
        with pytest.raises(Overloaded, match="all 1 slots are in use"):
            engine.open(QUIET)
        in_vain = engine.open(QUIET, wait=0.05)
        in_turn = engine.open(QUIET, wait=GENEROUS)
        assert (holder.queue_position, in_vain.queue_position) == (0, 1)
        with pytest.raises(Overloaded, match="timed out waiting for a free slot: all 1 slots are in use"):
            list(in_vain)
        in_turn.send(sound_of("fox", 5))
        in_turn.finish()
        assert not in_turn.ended
    assert [word.text for word in words_of(in_turn)] == ["fox"]


def test_leaving_the_context_frees_the_slot_whatever_happens(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner(slots=1))
    sessions = []

    def fail() -> None:
        with engine.open(QUIET) as session:
            sessions.append(session)
            session.send(speech(1, words=3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert engine.active == 0
    assert sessions[0].ended
    with pytest.raises(SessionClosed):
        sessions[0].send(silence(1))


def test_an_unreferenced_session_frees_its_slot(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner(slots=1))
    session = engine.open(QUIET)
    session.send(speech(1, words=3))
    del session
    gc.collect()
    engine.open(QUIET, wait=GENEROUS)
    until(lambda: engine.active <= 1)


@pytest.mark.parametrize("end", ["finish", "cancel", "fail"])
def test_an_ended_session_is_freed_although_its_listener_holds_it(start: Callable[..., Engine], end: str) -> None:
    class Listener:
        def __init__(self) -> None:
            self.session = engine.open(QUIET, wake=self.wake)

        def wake(self) -> None:
            pass

        def read(self) -> None:
            with contextlib.suppress(CheckpointError):
                list(self.session)

    engine = start(BabblingRunner() if end == "fail" else ScriptRunner())
    listener = Listener()
    if end == "fail":
        listener.session.send(silence(1))
        listener.read()  # the error now holds the stack in which it was raised
    else:
        getattr(listener.session, end)()
    until(lambda: engine.active == 0)
    freed = weakref.ref(listener)
    del listener
    gc.collect()
    assert freed() is None


def test_a_session_whose_listener_raises_ends_and_frees_its_slot(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner(slots=2))

    def wake() -> None:
        if threading.current_thread() is engine._thread:
            raise ZeroDivisionError("the listener is broken")

    broken = engine.open(QUIET, wake=wake)
    with engine.open(QUIET) as neighbour:
        broken.send(speech(1, words=3))
        neighbour.send(speech(2, words=3))
        neighbour.finish()
        assert words_of(neighbour) == solo(speech(2, words=3))
    until(lambda: engine.active == 0)
    with pytest.raises(ZeroDivisionError):
        list(broken)


def test_a_restart_keeps_the_slot_and_drops_the_rest(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner(slots=1, step_seconds=0.001))
    with engine.open(QUIET) as session:
        session.send(speech(1, words=20))
        session.restart()
        session.send(speech(2, words=4))
        session.finish()
        events = list(session)
    last_ready = max(number for number, event in enumerate(events) if isinstance(event, Ready))
    assert words_of(events[last_ready:]) == solo(speech(2, words=4))


# ------------------------------------------------------------------------------------------------------ failures


def test_a_step_that_fails_ends_every_session_and_the_engine(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner(slots=2, crash_after=5))
    sessions = [engine.open(QUIET), engine.open(QUIET), engine.open(QUIET, wait=GENEROUS)]
    sessions[0].send(silence(20))
    for session in sessions:
        with pytest.raises(EngineError, match="the device is on fire") as caught:
            list(session)
        assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(EngineError):
        engine.open(QUIET)
    with pytest.raises(EngineError):
        sessions[0].send(silence(1))
    assert not engine.alive


class BabblingRunner(ScriptRunner):
    """Writes a token in slot 0 that no tokenizer has."""

    def step(self, pcm_BS: np.ndarray, active_B: np.ndarray) -> StepOutput:
        output = super().step(pcm_BS, active_B)
        output.token_B[0] = 1_000_000
        return output


def test_a_failed_session_does_not_affect_others(start: Callable[..., Engine]) -> None:
    engine = start(BabblingRunner(slots=2))
    with engine.open(QUIET) as broken, engine.open(QUIET) as neighbour:
        for session in (broken, neighbour):
            session.send(speech(2, words=3))
        neighbour.finish()
        assert words_of(neighbour) == solo(speech(2, words=3))
        with pytest.raises(CheckpointError, match="token 1000000"):
            list(broken)


def test_invalid_audio_ends_only_its_session(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner(slots=2))
    with engine.open(QUIET) as session, engine.open(QUIET) as other:
        with pytest.raises(AudioError, match="not a finite number"):
            session.send(np.array([np.nan], np.float32))
        with pytest.raises(AudioError, match="not a finite number"):
            list(session)
        other.send(sound_of("fox", 3))
        other.finish()
        assert [word.text for word in words_of(other)] == ["fox"]


def test_closing_the_engine_ends_its_sessions(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner())
    session = engine.open(QUIET)
    engine.close()
    engine.close()
    with pytest.raises(SessionClosed):
        list(session)
    with pytest.raises(SessionClosed, match="is closed"):
        engine.open(QUIET)


# ---------------------------------------------------------------------------------------------- bounds and waits


def test_an_idle_engine_sleeps(start: Callable[..., Engine]) -> None:
    runner = ScriptRunner(slots=2)
    engine = start(runner)
    with engine.open(QUIET) as session:
        session.send(silence(0.5))
        until(lambda: asleep(engine))
        session.send(sound_of("fox", 2.5))
        until(lambda: runner.steps == 3 and asleep(engine))
    until(lambda: asleep(engine))


def test_sending_faster_than_the_model_waits_or_is_overloaded(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner(step_seconds=0.002))
    audio_S = speech(4, words=12)
    options = SessionOptions(partials=False, max_buffered_seconds=1.0)
    with engine.open(options) as session:
        assert session.offer(audio_S) == 24_000
        with pytest.raises(Overloaded, match="1 s of audio wait"):
            session.send(audio_S[24_000:], timeout=0)
    with engine.open(options) as session:
        session.send(audio_S)
        session.finish()
        assert words_of(session) == solo(audio_S)


def test_a_slow_reader_loses_partial_words_then_its_session(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "MAX_UNREAD_EVENTS", 60)
    engine = start(ScriptRunner())
    audio_S = np.concatenate([speech(seed, words=5) for seed in range(12)])
    with engine.open(SessionOptions(steps=True)) as session:
        with contextlib.suppress(Overloaded):
            for second_S in np.array_split(audio_S, len(audio_S) // 24_000):
                session.send(second_S)
        until(lambda: session.ended)
        events: list[Event] = []
        with pytest.raises(Overloaded, match="events are unread"):
            events.extend(session)
    assert 60 < len(events) < 80
    assert not any(isinstance(event, (PartialWord, Step)) for event in events[45:])
    assert words_of(events) == solo(audio_S)[: len(words_of(events))]


def test_a_marker_comes_back_without_any_more_audio(start: Callable[..., Engine]) -> None:
    with start(ScriptRunner(delay_frames=32)).open(QUIET) as session:
        session.send(sound_of("fox", 5))
        session.mark(42)
        events: list[Event] = []
        for event in session:
            events.append(event)
            if isinstance(event, MarkerReached):
                break
    assert event == MarkerReached(42)
    assert [word.text for word in words_of(events)] == ["fox"]


def test_draining_finishes_open_sessions_and_refuses_new_ones(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner(slots=8))
    sessions = [engine.open(QUIET) for _ in range(8)]
    for number, session in enumerate(sessions):
        session.send(speech(number, words=6))
    assert engine.drain(timeout=GENEROUS)
    with pytest.raises(Overloaded, match="about to stop"):
        engine.open(QUIET)
    for number, session in enumerate(sessions):
        assert words_of(session) == solo(speech(number, words=6))


def test_draining_stops_at_its_timeout(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner(step_seconds=0.05))
    session = engine.open(QUIET)
    session.send(silence(100))
    assert not engine.drain(timeout=0.05)


def test_steps_are_reported(start: Callable[..., Engine]) -> None:
    reports: list[StepReport] = []
    engine = start(ScriptRunner(slots=4, step_seconds=0.002), observer=reports.append)
    with engine.open(QUIET) as session:
        session.send(silence(10))
        session.finish()
        list(session)
    until(lambda: len(reports) == 16)
    assert all(report.seconds >= 0.002 and report.lag_seconds >= 0 for report in reports)
    assert {(report.sessions, report.slots) for report in reports} == {(1, 4)}


def test_the_silence_prefix_is_processed_immediately(start: Callable[..., Engine]) -> None:
    runner = ScriptRunner()
    with start(runner, silence_prefix_seconds=1.0).open(SessionOptions(steps=True)) as session:
        until(lambda: runner.steps == 13)
        session.send(sound_of("fox", 3))
        session.finish()
        events = list(session)
    assert [event.index for event in events if isinstance(event, Step)] == [1, 2, 3]
    assert words_of(events)[0].start == 0.0


def test_many_readers_wait_without_polling(start: Callable[..., Engine]) -> None:
    engine = start(ScriptRunner(slots=4))
    sessions = [engine.open(QUIET) for _ in range(4)]
    found: dict[int, list[Word]] = {}

    def read(number: int, session: LiveSession) -> None:
        found[number] = words_of(session)

    threads = [threading.Thread(target=read, args=pair) for pair in enumerate(sessions)]
    for thread in threads:
        thread.start()
    for number, session in enumerate(sessions):
        for piece in np.split(speech(number, 4), [FRAME_SAMPLES, 5 * FRAME_SAMPLES]):
            session.send(piece)
        session.finish()
    for thread in threads:
        thread.join(GENEROUS)
    assert found == {number: solo(speech(number, 4)) for number in range(4)}
