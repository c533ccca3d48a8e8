from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.fakes import (
    FRAME_RATE,
    FRAME_SAMPLES,
    ScriptRunner,
    drive,
    new_session,
    random_chunks,
    run,
    silence,
    sound_of,
    speech,
    words_of,
)

from slipstream.engine.options import SessionOptions
from slipstream.engine.session import Session
from slipstream.engine.turns import TurnOptions
from slipstream.errors import AudioError, ConfigError, SessionClosed
from slipstream.events import (
    EndOfTurn,
    Event,
    Final,
    Flushed,
    MarkerReached,
    OpenWord,
    PartialWord,
    Ready,
    StartOfTurn,
    Step,
    Turn,
    Word,
)

SAMPLE_RATE = 24_000


def transcribed(audio_S: np.ndarray, **options: object) -> list[Word]:
    runner = ScriptRunner()
    return words_of(drive(new_session(runner, **options), runner, [audio_S]))


def texts_and_starts(words: list[Word]) -> list[tuple[str, float]]:
    return [(word.text, word.start) for word in words]


def kinds(events: list[Event]) -> list[type]:
    return [type(event) for event in events]


# ---------------------------------------------------------------------------------------------------------- laws


def test_two_hundred_random_chunkings_give_the_words_of_the_whole_file() -> None:
    random = np.random.default_rng(0)
    recordings = [speech(seed, words=6) for seed in range(5)]
    whole = [transcribed(audio_S) for audio_S in recordings]
    for case in range(200):
        audio_S, expected = recordings[case % 5], whole[case % 5]
        start = int(random.integers(0, len(audio_S) // 4)) if case % 2 else 0
        if start:
            expected = transcribed(audio_S[start:])
        runner = ScriptRunner()
        chunks = random_chunks(audio_S[start:], random, typical=random.choice([100, 1000, 1920, 10_000]))
        assert words_of(drive(new_session(runner), runner, chunks)) == expected
    assert sum(map(len, whole)) == 30


@pytest.mark.parametrize("delay", [1, 2, 6, 32])
def test_every_word_arrives_closed_and_within_the_audio_however_late_it_was_spoken(delay: int) -> None:
    for extra_samples in (1, 500, FRAME_SAMPLES, FRAME_SAMPLES + 1, 3 * FRAME_SAMPLES - 1):
        runner = ScriptRunner(delay_frames=delay)
        audio_S = np.concatenate([speech(3, words=4), silence(3), sound_of("répondit", extra_samples / FRAME_SAMPLES)])
        events = drive(new_session(runner), runner, [audio_S])
        words = words_of(events)
        assert len(words) == 5
        assert words[-1].text == "répondit"
        assert words[-1].end == len(audio_S) / SAMPLE_RATE
        assert isinstance(events[-1], Final)
        assert events[-1].duration == len(audio_S) / SAMPLE_RATE


def test_a_flush_in_mid_stream_changes_neither_the_words_nor_the_state_of_the_model() -> None:
    random = np.random.default_rng(1)
    owed_at_the_end = 0
    for seed in range(30):
        audio_S = speech(seed, words=6)
        plain_runner, runner = ScriptRunner(), ScriptRunner()
        plain = drive(new_session(plain_runner), plain_runner, [audio_S], finish=False)
        session = new_session(runner)
        events: list[Event] = drive(session, runner, [], finish=False)
        for chunk in random_chunks(audio_S, random, typical=8000):
            session.push(chunk)
            events += run(session, runner)
            session.flush(now=0.0)
            events += run(session, runner)
        assert runner._states[0] == plain_runner._states[0]
        session.finish(now=0.0)
        events += run(session, runner)
        words, expected = words_of(events), transcribed(audio_S)
        assert [word.text for word in words] == [word.text for word in expected]
        # A word that a flush brings early starts no later than the flush, nor one that follows it before the flush.
        assert all(abs(late.start - word.start) < 0.6 for word, late in zip(words, expected, strict=True))
        owed_at_the_end += len(words) - len(words_of(plain))
    assert owed_at_the_end > 10


def test_a_flush_emits_every_word_that_has_begun() -> None:
    audio_S = speech(5, words=10)
    expected = transcribed(audio_S)
    for seconds in np.arange(0.5, len(audio_S) / SAMPLE_RATE, 0.37):
        runner = ScriptRunner()
        session = new_session(runner)
        processed_S = audio_S[: int(seconds * SAMPLE_RATE)]
        drive(session, runner, [processed_S], finish=False)
        before = len(words_of(session.events))
        session.flush(now=0.0)
        events = run(session, runner)
        begun = [word for word in expected if word.start * FRAME_RATE < len(processed_S) // FRAME_SAMPLES]
        told = transcribed(processed_S)
        assert len(told) >= len(begun)
        assert texts_and_starts(told)[: len(begun)] == texts_and_starts(begun)
        assert before + len(words_of(events)) <= len(told)
        assert isinstance(events[-1], Flushed)


def test_low_latency_emits_the_last_words_of_a_turn_immediately_and_no_word_twice() -> None:
    # The word begins only two frames before the pause: it is still pending at the end of the turn.
    audio_S = np.concatenate([sound_of("fox", 14), silence(9), sound_of("sea", 5), silence(30)])
    runner = ScriptRunner(delay_frames=20)
    session = new_session(runner, low_latency=True)
    events = drive(session, runner, [audio_S])
    assert texts_and_starts(words_of(events)) == texts_and_starts(
        words_of(drive(new_session(other := ScriptRunner(delay_frames=20)), other, [audio_S]))
    )
    end = kinds(events).index(EndOfTurn)
    told = kinds(events)[end : end + 5]
    assert told == [EndOfTurn, OpenWord, Word, Turn, Flushed]


def test_a_flush_after_silence_comes_once_for_each_silence_and_leaves_no_trace() -> None:
    audio_S = np.concatenate([silence(20), sound_of("fox", 3), silence(30), sound_of("dog", 4), silence(10)])
    events = drive(new_session(ScriptRunner(delay_frames=20)), ScriptRunner(delay_frames=20), [audio_S])
    runner = ScriptRunner(delay_frames=20)
    flushed = drive(new_session(runner, flush_after_silence=1.0), runner, [audio_S])
    assert words_of(flushed) == words_of(events)
    times = [event.time for event in flushed if isinstance(event, Flushed)]
    assert times == [pytest.approx((20 + 3 + 13) * 0.08), pytest.approx(len(audio_S) / 24_000)]
    assert [isinstance(event, Flushed) for event in flushed if isinstance(event, (Word, Flushed))][:2] == [False, True]


@pytest.mark.parametrize("low_latency", [False, True])
def test_turns_span_their_words(low_latency: bool) -> None:
    audio_S = np.concatenate([sound_of("fox", 15), sound_of("dog", 5), silence(25), sound_of("sea", 5), silence(25)])
    runner = ScriptRunner()
    events = drive(new_session(runner, low_latency=low_latency), runner, [audio_S])
    fox, dog, sea = words_of(events)
    assert [event for event in events if isinstance(event, Turn)] == [
        Turn(fox.start, dog.end),
        Turn(sea.start, sea.end),
    ]
    ends = [event.time for event in events if isinstance(event, EndOfTurn)]
    assert ends == [25 / FRAME_RATE, 55 / FRAME_RATE]  # after five silent frames the pause heads give 0.625


def test_turn_options_of_the_session_replace_those_of_the_model() -> None:
    audio_S = np.concatenate([sound_of("fox", 15), silence(25)])
    runner = ScriptRunner()
    format = replace(new_session(runner).format, turns=TurnOptions(end_above=0.8))
    ends = []
    for options in (SessionOptions(), SessionOptions(turns=TurnOptions(end_above=0.6))):
        events = drive(Session(format, options), runner, [audio_S])
        ends += [round(event.time * FRAME_RATE) for event in events if isinstance(event, EndOfTurn)]
    assert ends == [22, 20]  # after n silent frames the pause heads give n / 8


def test_without_pause_heads_turns_follow_the_sound() -> None:
    audio_S = np.concatenate([sound_of("fox", 15), silence(25), sound_of("sea", 5), silence(25)])
    runner = ScriptRunner(pause_heads=0)
    events = drive(new_session(runner), runner, [audio_S])
    assert [event.time for event in events if isinstance(event, EndOfTurn)] == [25 / FRAME_RATE, 55 / FRAME_RATE]
    assert kinds(events).count(Turn) == 2


def test_each_turn_starts_where_its_speech_does() -> None:
    audio_S = np.concatenate([silence(5), sound_of("fox", 15), silence(25), sound_of("sea", 5), silence(25)])
    runner = ScriptRunner()
    events = drive(new_session(runner), runner, [audio_S])
    turns = [event for event in events if isinstance(event, (StartOfTurn, EndOfTurn))]
    assert kinds(turns) == [StartOfTurn, EndOfTurn] * 2
    assert [turn.time for turn in turns if isinstance(turn, StartOfTurn)] == [5 / FRAME_RATE, 45 / FRAME_RATE]


@pytest.mark.parametrize("low_latency", [False, True])
def test_the_rule_for_turns_can_change_within_a_stream(low_latency: bool) -> None:
    part_S = np.concatenate([sound_of("fox", 15), silence(25)])
    runner = ScriptRunner()
    session = new_session(runner)
    events = drive(session, runner, [part_S], finish=False)
    session.set_turns(TurnOptions(head=None, quiet_seconds=0.8), low_latency)
    session.push(part_S)
    events += run(session, runner)
    ends = [round(event.time * FRAME_RATE) for event in events if isinstance(event, EndOfTurn)]
    assert ends == [20, 40 + 25]  # after five silent frames by the pause heads, then after ten by the sound
    flushes = [round(event.time * FRAME_RATE) for event in events if isinstance(event, Flushed)]
    assert flushes == ([40 + 25] if low_latency else [])
    session.restart()
    session.push(part_S)
    assert [round(e.time * FRAME_RATE) for e in run(session, runner) if isinstance(e, EndOfTurn)] == [25]


def test_a_rule_that_comes_during_a_step_waits_for_its_output() -> None:
    runner = ScriptRunner()
    session = new_session(runner, turns=TurnOptions(head=None, quiet_seconds=2.0))
    session.admit(0)
    session.push(np.concatenate([sound_of("fox", 15), silence(30)]))
    run(session, runner, steps=24)
    row_S, outputs = np.zeros(FRAME_SAMPLES, np.float32), []
    for _ in range(2):
        session.fill(row_S)
        outputs.append(runner.step(np.stack([row_S]), np.array([True])))
    session.set_turns(TurnOptions(head=None, quiet_seconds=0.8), low_latency=True)
    for output in outputs:
        session.advance(int(output.token_B[0]), float(output.logprob_B[0]), output.pause_BH[0].tolist(), 0.0)
    # The old rule holds for both frames: a flush after the first one would save a state that has the second one too.
    assert [round(e.time * FRAME_RATE) for e in run(session, runner) if isinstance(e, Flushed)] == [27]


def test_the_silence_prefix_shifts_no_times() -> None:
    audio_S = speech(2, words=6)
    runner = ScriptRunner()
    events = drive(new_session(runner, silence_frames=13, steps=True), runner, [audio_S])
    assert texts_and_starts(words_of(events)) == texts_and_starts(transcribed(audio_S))
    assert [event.index for event in events if isinstance(event, Step)][:2] == [1, 2]


# ------------------------------------------------------------------------------------------------------- markers


def test_a_marker_comes_after_all_text_of_the_audio_before_it_and_no_later_than_the_delay() -> None:
    audio_S = speech(7, words=12)
    expected = transcribed(audio_S)
    for sent in range(0, len(audio_S), 3333):
        runner = ScriptRunner()
        session = new_session(runner)
        session.admit(0)
        session.push(audio_S[:sent])
        session.mark(7, now=0.0)
        session.push(audio_S[sent:])
        events = run(session, runner)
        if MarkerReached(7) not in events:  # it may be the flush at the end that brings it
            session.finish(now=0.0)
            events += run(session, runner)
        before = events[: events.index(MarkerReached(7))]
        owed = [word for word in expected if word.start < sent / SAMPLE_RATE]
        assert words_of(before)[: len(owed)] == owed


def test_a_marker_is_reached_immediately_when_no_text_is_pending() -> None:
    session = new_session(ScriptRunner())
    session.admit(0)
    session.mark(1, now=0.0)
    assert session.events == [Ready(), MarkerReached(1)]


def test_markers_come_in_order_with_the_flush_that_reaches_them() -> None:
    runner = ScriptRunner()
    session = new_session(runner)
    session.admit(0)
    for id in (1, 2):
        session.push(sound_of("fox", 3))
        session.mark(id, now=0.0)
    run(session, runner)
    assert session.awaits_marker
    session.flush_for_markers(now=0.0)
    events = run(session, runner)
    assert [event.id for event in events if isinstance(event, MarkerReached)] == [1, 2]
    assert kinds(events)[-1] is Flushed
    assert not session.awaits_marker


# ------------------------------------------------------------------------------------------- flushing and ending


def test_an_empty_session_ends_without_a_step() -> None:
    runner = ScriptRunner()
    session = new_session(runner, silence_frames=13)
    assert kinds(drive(session, runner, [])) == [Ready, Flushed, Final]
    assert session.done


def test_a_second_flush_at_the_same_place_takes_no_step() -> None:
    runner = ScriptRunner()
    session = new_session(runner)
    drive(session, runner, [speech(1, words=3)], finish=False)
    session.flush(now=0.0)
    run(session, runner)
    steps = runner.steps
    session.flush(now=0.0)
    session.finish(now=0.0)
    assert kinds(session.events) == [Flushed, Turn, Flushed, Final]
    assert runner.steps == steps


def test_audio_that_comes_during_a_flush_is_processed_after_it() -> None:
    runner = ScriptRunner()
    session = new_session(runner)
    events = drive(session, runner, [sound_of("fox", 5)], finish=False)
    session.flush(now=0.0)
    events += run(session, runner, steps=2)
    session.push(sound_of("dog", 5))
    events += run(session, runner)
    session.finish(now=0.0)
    events += run(session, runner)
    assert texts_and_starts(words_of(events)) == [("fox", 0.0), ("dog", 0.4)]


def test_a_finished_session_refuses_audio_and_flushes() -> None:
    session = new_session(ScriptRunner())
    session.finish(now=0.0)
    session.finish(now=0.0)
    for ask in (lambda: session.push(silence(1)), lambda: session.flush(0.0), lambda: session.mark(1, 0.0)):
        with pytest.raises(SessionClosed):
            ask()
    with pytest.raises(SessionClosed):
        session.restart()


@pytest.mark.parametrize("in_model", [0, 1, 2])
def test_a_flush_before_the_buffered_audio_covers_what_the_model_has_processed(in_model: int) -> None:
    runner = ScriptRunner()
    audio_S = speech(4, words=6)
    session = new_session(runner)
    session.admit(0)
    session.push(audio_S)
    events = run(session, runner, steps=20)
    session.finish(now=0.0)
    pcm_BS, active_B = np.zeros((1, FRAME_SAMPLES), np.float32), np.ones(1, np.bool_)
    outputs = []
    for _ in range(in_model):
        session.fill(pcm_BS[0])
        outputs.append(runner.step(pcm_BS, active_B))
    session.flush(now=0.0, buffered=False)
    for output in outputs:
        session.advance(int(output.token_B[0]), float(output.logprob_B[0]), output.pause_BH[0].tolist(), 0.0)
    events += session.events
    session.events = []
    events += run(session, runner)
    flushed = [event.time for event in events if isinstance(event, Flushed)]
    assert flushed == [(20 + in_model) / FRAME_RATE, len(audio_S) / SAMPLE_RATE]
    early = [word.text for word in words_of(events[: events.index(Flushed(flushed[0], 0.0))])]
    words = transcribed(audio_S)
    assert len(early) >= len([word for word in words if word.start < flushed[0]]) > 0
    assert [word.text for word in words_of(events)] == [word.text for word in words]


def test_a_restart_resets_everything() -> None:
    runner = ScriptRunner()
    session = new_session(runner)
    drive(session, runner, [speech(1, words=3)], finish=False)
    session.push(speech(2, words=3))
    session.mark(1, now=0.0)
    session.flush(now=0.0)
    session.restart()
    session.push(speech(4, words=5))
    session.finish(now=0.0)
    events = run(session, runner)
    assert kinds(events)[0] is Ready
    assert words_of(events) == transcribed(speech(4, words=5))


def test_the_output_of_a_step_during_a_restart_is_ignored() -> None:
    session = new_session(ScriptRunner())
    session.admit(0)
    session.push(sound_of("fox", 2))
    session.fill(np.zeros(FRAME_SAMPLES, np.float32))
    session.restart()
    session.advance(3, 0.0, (), now=0.0)
    assert session.clock == 0.0


# --------------------------------------------------------------------------------------------------------- audio


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3000.0])
def test_invalid_samples_are_refused_with_their_time(bad: float) -> None:
    session = new_session(ScriptRunner())
    session.push(silence(12.5))
    samples = silence(1)
    samples[240] = bad
    with pytest.raises(AudioError, match=r"1\.010 s"):
        session.push(samples)
    assert session.received == 12.5 * FRAME_SAMPLES


def test_two_channels_are_refused() -> None:
    with pytest.raises(AudioError, match="one channel"):
        new_session(ScriptRunner()).push(np.zeros((2, 100), np.float32))


def test_room_is_the_space_left_in_the_buffer() -> None:
    runner = ScriptRunner()
    session = new_session(runner, max_buffered_seconds=2.0)
    assert session.room == 48_000
    session.push(silence(10))
    assert session.room == 48_000 - 10 * FRAME_SAMPLES
    session.admit(0)
    run(session, runner)
    assert session.room == 48_000


def test_a_session_has_so_few_attributes_that_python_keeps_them_in_an_array() -> None:
    # With more than 30, CPython gives each session a dictionary of 1.6 kB, which each frame needs in the cache.
    assert len(vars(new_session(ScriptRunner()))) <= 30


def test_invalid_options_are_refused() -> None:
    with pytest.raises(ConfigError):
        SessionOptions(max_buffered_seconds=0.0)


def test_partial_words_and_steps_are_optional() -> None:
    runner = ScriptRunner()
    audio_S = np.concatenate([sound_of("hôpital", 4), silence(8)])
    events = drive(new_session(runner, partials=True, steps=True), runner, [audio_S])
    partial = [event.text for event in events if isinstance(event, PartialWord)]
    assert partial[-1] == "hôpital"
    assert all("hôpital".startswith(text) for text in partial)
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.index for step in steps] == list(range(1, 13))
    assert len(steps[0].pause) == 4
    assert steps[0].buffered == 11 * FRAME_SAMPLES
