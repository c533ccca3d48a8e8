"""The steps of a flush, and its operations on the slot."""

from __future__ import annotations

import numpy as np
from tests.fakes import ScriptRunner, drive, new_session, run, silence, sound_of, words_of

from slipstream.engine.flush import MAX_EXTRA_FLUSH_FRAMES, flush_steps
from slipstream.engine.slots import Reset, Snapshot
from slipstream.events import Final, Flushed


def test_a_flush_reports_its_time() -> None:
    runner = ScriptRunner()
    session = new_session(runner)
    drive(session, runner, [sound_of("fox", 5)], finish=False)
    session.flush(now=10.0)
    (flushed,) = [event for event in run(session, runner, now=10.25) if isinstance(event, Flushed)]
    assert flushed == Flushed(time=0.4, seconds=0.25)


def test_a_flush_takes_the_delays_steps_and_the_queue_of_dense_speech() -> None:
    runner = ScriptRunner(delay_frames=6)
    session = new_session(runner)
    drive(session, runner, [silence(10)], finish=False)
    before = runner.steps
    session.flush(now=0.0)
    run(session, runner)
    assert runner.steps - before == 6
    session.push(np.concatenate([sound_of(word, 1) for word in ("hôpital", "répondit", "twenty-four", "doesn't")]))
    session.finish(now=0.0)
    assert [word.text for word in words_of(run(session, runner))] == ["hôpital", "répondit", "twenty-four", "doesn't"]


def test_a_flush_ends_although_the_model_never_stops_writing() -> None:
    runner = ScriptRunner(loop_after=0)
    session = new_session(runner, watchdog=None)
    events = drive(session, runner, [silence(10)])
    assert isinstance(events[-1], Final)
    assert runner.steps == 10 + 6 + MAX_EXTRA_FLUSH_FRAMES


def test_the_slot_is_saved_before_and_restored_after_a_flush_within_a_stream_only() -> None:
    runner = ScriptRunner()
    session = new_session(runner)
    session.admit(0)
    assert session.take_ops() == [Reset()]
    runner.reset([0])
    session.push(sound_of("fox", 2))
    run(session, runner)
    session.flush(now=0.0)
    assert session.take_ops() == [Snapshot(flush_steps(runner.delay_frames))]
