"""Sessions on an engine in another process get the events that they get on one in their own."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from tests.engine.remote.harness import hosting, wait_for
from tests.fakes import FRAME_SAMPLES, ScriptRunner, sound_of, speech, tiny_tokenizer
from tests.models import noise_and_tones, random_model, stt_config

from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.engine.engine import Engine
from slipstream.engine.history import Continuation
from slipstream.engine.live import AnyEngine, LiveSession
from slipstream.engine.remote.channel import Kind
from slipstream.engine.session import SessionOptions
from slipstream.engine.waiting import MAX_PASSED
from slipstream.errors import AudioError, ConfigError, EngineError, Overloaded
from slipstream.events import Event, Final, Flushed, History, MarkerReached, Ready, Word
from slipstream.hints import Hints, Keyword

OPTIONS = [
    SessionOptions(),
    SessionOptions(low_latency=True),
    SessionOptions(flush_after_silence=0.5),
    SessionOptions(partials=False, watchdog=None),
]


def events_of(engine: AnyEngine, seed: int, options: SessionOptions, wait: float = 0.0) -> list[Event]:
    """The events of a recording with a flush and a marker, without the times that differ from run to run."""
    session = engine.open(options, wait=wait)

    def send() -> None:
        for number, chunk in enumerate(np.array_split(speech(seed, words=8), 13)):
            session.send(chunk)
            if number == 7:
                session.flush()
                session.mark(number)
        session.finish()

    sender = threading.Thread(target=send)
    sender.start()
    events = list(session)
    sender.join()
    return [without_times(event) for event in events]


def without_times(event: Event) -> Event:
    """The event, without the times that differ from run to run."""
    if isinstance(event, Flushed):
        return replace(event, seconds=0.0)
    return replace(event, flush_seconds=0.0) if isinstance(event, Final) else event


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "low latency", "silence", "no partials"])
def test_events_are_those_of_an_engine_in_the_same_process(options: SessionOptions) -> None:
    with Engine(ScriptRunner(slots=2), tiny_tokenizer()) as engine:
        expected = events_of(engine, 3, options)
    with hosting(ScriptRunner(slots=2)) as hosted, hosted.worker() as remote:
        assert events_of(remote, 3, options) == expected


def test_the_watchdog_resets_the_same_slot_at_the_same_time() -> None:
    options = SessionOptions(steps=False)
    with Engine(ScriptRunner(loop_after=40), tiny_tokenizer()) as engine:
        expected = events_of(engine, 5, options)
    with hosting(ScriptRunner(loop_after=40)) as hosted, hosted.worker() as remote:
        assert events_of(remote, 5, options) == expected


def test_sessions_of_two_workers_share_the_slots() -> None:
    with Engine(ScriptRunner(slots=2), tiny_tokenizer()) as engine:
        expected = [events_of(engine, seed, SessionOptions()) for seed in range(6)]
    found: dict[int, list[Event]] = {}
    with hosting(ScriptRunner(slots=2)) as hosted, hosted.worker() as one, hosted.worker() as other:

        def run(seed: int) -> None:
            found[seed] = events_of((one, other)[seed % 2], seed, SessionOptions(), wait=20.0)

        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_for(lambda: one.active == 0)
        assert one.waiting == 0
    assert [found[seed] for seed in range(6)] == expected


def test_a_worker_that_is_gone_frees_its_slots_and_its_places_in_the_queue() -> None:
    with hosting(ScriptRunner(slots=1)) as hosted, hosted.worker() as other:
        with hosted.worker() as lost:
            held = [lost.open()]
            held[0].send(sound_of("fox", frames=3))
            wait_for(lambda: lost.active == 1)
            held.append(lost.open(wait=60.0))
            wait_for(lambda: lost.waiting == 1)
            waiting = other.open(wait=60.0)
            wait_for(lambda: waiting.queue_position == 2)
        wait_for(lambda: waiting.queue_position == 0)
        assert isinstance(next(iter(waiting)), Ready)
        assert (other.active, other.waiting) == (1, 0)


def test_a_full_engine_is_reported() -> None:
    with hosting(ScriptRunner(slots=1), max_waiting=1) as hosted, hosted.worker() as engine:
        with engine.open():
            wait_for(lambda: engine.active == 1)
            with pytest.raises(Overloaded, match=r"^all 1 slots are in use$"):
                list(engine.open())
            with pytest.raises(Overloaded, match="timed out waiting for a free slot"):
                list(engine.open(wait=0.01))
            waiting = engine.open(wait=60.0)
            wait_for(lambda: waiting.queue_position == 1)
            with pytest.raises(Overloaded, match="1 sessions wait already"):
                list(engine.open(wait=60.0))
        wait_for(lambda: waiting.queue_position == 0)


def test_new_sessions_go_to_the_emptiest_engine_and_the_queue_takes_the_first_free_slot() -> None:
    with hosting(ScriptRunner(slots=2), ScriptRunner(slots=2)) as hosted, hosted.worker() as engine:
        sessions = []
        for number in range(4):
            sessions.append(engine.open())
            wait_for(lambda number=number: engine.active == number + 1)
            assert abs(engine.devices[0].free - engine.devices[1].free) <= 1
        with pytest.raises(Overloaded, match="all 4 slots are in use"):
            list(engine.open())
        waiting = engine.open(wait=60.0)
        wait_for(lambda: waiting.queue_position == 1)
        sessions[3].cancel()
        wait_for(lambda: waiting.queue_position == 0)
        wait_for(lambda: (engine.active, engine.waiting) == (4, 0))


def test_a_session_that_waits_for_several_slots_keeps_those_of_one_engine_only() -> None:
    with hosting(ScriptRunner(slots=2), ScriptRunner(slots=2)) as hosted, hosted.worker() as engine:
        held = [engine.open()]
        wait_for(lambda: engine.active == 1)
        held.append(engine.open())
        wait_for(lambda: [device.free for device in engine.devices] == [1, 1])
        options = SessionOptions(hints=Hints(beam=2))
        shortage = "the session needs 2 slots of one device, and at most 1 of 2 are free"
        with pytest.raises(Overloaded, match=f"{shortage}$"):
            list(engine.open(options))
        with pytest.raises(Overloaded, match=f"timed out waiting for a free slot: {shortage}$"):
            list(engine.open(options, wait=0.01))
        wide = engine.open(options, wait=60.0)
        wait_for(lambda: wide.queue_position == 1)
        for _ in range(3 * MAX_PASSED):  # most of them on the second engine, which keeps nothing
            with engine.open() as narrow:
                assert isinstance(next(iter(narrow)), Ready)
            wait_for(lambda: engine.active == 2)
        held.append(engine.open())
        wait_for(lambda: engine.active == 3)
        assert [device.free for device in engine.devices] == [1, 0]
        with pytest.raises(Overloaded, match=r"^1 of 4 slots are free, but kept for a session that waits for more$"):
            list(engine.open())
        held[0].cancel()
        assert isinstance(next(iter(wide)), Ready)
        assert [device.free for device in engine.devices] == [0, 0]


def test_a_session_for_which_no_engine_would_keep_slots_does_not_wait() -> None:
    with hosting(ScriptRunner(slots=3), ScriptRunner(slots=2), max_waiting=1) as hosted, hosted.worker() as engine:
        held = []
        for number in range(3):
            held.append(engine.open())
            wait_for(lambda number=number: engine.active == number + 1)
        assert [device.free for device in engine.devices] == [1, 1]
        widest = engine.open(SessionOptions(hints=Hints(beam=3)), wait=60.0)  # only the first engine has the slots
        wait_for(lambda: widest.queue_position == 1)
        with pytest.raises(Overloaded, match=r"needs 2 slots of one device, .* are free; 1 sessions wait already$"):
            list(engine.open(SessionOptions(hints=Hints(beam=2)), wait=2.0))
        narrow = [engine.open(wait=60.0), engine.open(wait=60.0), engine.open(wait=60.0)]
        wait_for(lambda: engine.active == 5)
        wait_for(lambda: narrow[2].queue_position == 1)  # at the second engine
        held[2].cancel()
        assert isinstance(next(iter(narrow[2])), Ready)


def test_a_step_that_fails_ends_every_session() -> None:
    with hosting(ScriptRunner(crash_after=2)) as hosted, hosted.worker() as engine:
        session = engine.open()
        session.send(sound_of("fox", frames=8))
        with pytest.raises(EngineError, match="the process of the engine has ended"):
            list(session)
        assert not engine.alive
        with pytest.raises(EngineError):
            engine.open()
        wait_for(lambda: hosted.failures)


def test_a_host_that_has_ended_takes_neither_a_stop_nor_a_worker() -> None:
    with hosting(ScriptRunner()) as hosted:
        (host,) = hosted.hosts
        host.stop()
        wait_for(lambda: not hosted.running)
        host.stop()
        ours, theirs = socket.socketpair()
        host.attach(theirs)
        assert ours.recv(1) == b""
        ours.close()


def test_restarts_markers_and_invalid_audio() -> None:
    with hosting(ScriptRunner(slots=2)) as hosted, hosted.worker() as engine:
        session = engine.open()
        session.send(sound_of("fox", frames=6))
        session.restart()
        session.send(sound_of("dog", frames=6))
        session.mark(7)  # no more audio comes: the engine flushes for it
        events = []
        for event in session:
            events.append(event)
            if isinstance(event, MarkerReached):
                break
        assert events.count(Ready()) >= 1
        assert [event.text for event in events if hasattr(event, "text")][-1] == "dog"
        with pytest.raises(AudioError):
            session.send(np.full(FRAME_SAMPLES, np.nan, np.float32))
        wait_for(lambda: engine.active == 0)


def random_runner(slots: int = 2) -> OnnxRunner:
    """A model whose text depends on the text before, and on the number of each frame."""
    config = stt_config(codec="whisper", text_vocab=tiny_tokenizer().vocab_size)
    return OnnxRunner(config, *random_model(config), slots=slots, threads=1)


def model_events(engine: AnyEngine, options: SessionOptions, seed: int = 3) -> list[Event]:
    session = engine.open(options)
    session.send(noise_and_tones(4.0, seed=seed))
    session.finish()
    return [event for event in session if isinstance(event, (Word, History))]


SEARCHES = [
    Hints(beam=3),
    Hints(alternatives=3),
    Hints(beam=2, lm="the quick brown fox jumps over the lazy dog"),
    Hints(alternatives=2, keywords=[Keyword("word", 5.0)], prompt="the quick brown fox"),
    Hints(delay=1.6),
    Hints(beam=2, delay=0.8),
]


def flushed_events(engine: AnyEngine, hints: Hints) -> list[Event]:
    """All events of a stream that is flushed in the middle of its audio, without their times of processing."""
    audio_S = noise_and_tones(4.0, seed=3)
    session = engine.open(SessionOptions(hints=hints, steps=True))
    session.send(audio_S[:40_000])
    session.flush()
    session.mark(1)
    events = []
    for event in session:
        events.append(event)
        if isinstance(event, MarkerReached):  # the next audio comes after the flush, on any machine
            session.send(audio_S[40_000:])
            session.finish()
    return [without_times(event) for event in events]


@pytest.fixture(scope="module")
def expected_searches() -> list[list[Event]]:
    with Engine(random_runner(4), tiny_tokenizer()) as engine:
        return [flushed_events(engine, hints) for hints in SEARCHES]


@pytest.mark.parametrize("number", range(len(SEARCHES)))
def test_beams_alternatives_and_delays_give_the_events_of_an_engine_in_the_same_process(
    expected_searches: list[list[Event]], number: int
) -> None:
    with hosting(random_runner(4)) as hosted, hosted.worker() as remote:
        assert flushed_events(remote, SEARCHES[number]) == expected_searches[number]


def test_the_searches_that_are_compared_differ(expected_searches: list[list[Event]]) -> None:
    assert len({str(events) for events in expected_searches}) == len(SEARCHES)
    with_alternatives = expected_searches[1]
    assert any(event.alternatives for event in with_alternatives if isinstance(event, Word))


def test_wide_sessions_of_two_workers_wait_for_their_slots_and_do_not_change_other_sessions() -> None:
    cases = [Hints(beam=3), Hints(), Hints(alternatives=2), Hints(beam=4), Hints(delay=0.8), Hints(beam=2)]

    def words(engine: AnyEngine, seed: int) -> list[tuple[str, float, float]]:
        session = engine.open(SessionOptions(hints=cases[seed]), wait=60.0)
        session.send(noise_and_tones(3.0, seed=seed))
        session.finish()
        return [(event.text, event.start, event.end) for event in session if isinstance(event, Word)]

    with Engine(random_runner(4), tiny_tokenizer()) as engine:
        expected = [words(engine, seed) for seed in range(6)]
    assert all(expected)
    runners = random_runner(4), random_runner(2)  # a beam of 3 fits into the first only
    with hosting(*runners) as hosted, hosted.worker() as one, hosted.worker() as other:
        assert [one.width_for(sessions) for sessions in (1, 2, 3, 6, 7)] == [4, 2, 2, 1, 0]
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda seed: words((one, other)[seed % 2], seed), range(6))) == expected
        wait_for(lambda: (one.active, one.waiting) == (0, 0))


def test_hints_that_the_model_cannot_serve_are_refused_as_in_one_process() -> None:
    def message(engine: AnyEngine, hints: Hints) -> str:
        with pytest.raises(ConfigError) as refused:
            engine.open(SessionOptions(hints=hints))
        return str(refused.value)

    many = [Hints(beam=3), Hints(alternatives=5), Hints(delay=0.01)]
    with Engine(random_runner(2), tiny_tokenizer()) as engine:
        expected = [message(engine, hints) for hints in many]
    with hosting(random_runner(2)) as hosted, hosted.worker() as remote:
        assert [message(remote, hints) for hints in many] == expected
    with hosting(ScriptRunner()) as hosted, hosted.worker() as remote:
        assert message(remote, Hints(delay=1.6)) == "delay=1.6: this model has one delay, 0.48 s"


def test_the_language_of_a_stream_reaches_the_engine() -> None:
    config = stt_config(codec="whisper", decoder=True, languages=("en", "fr"), text_vocab=tiny_tokenizer().vocab_size)

    def bilingual() -> OnnxRunner:
        return OnnxRunner(config, *random_model(config), slots=2, threads=1)

    options = [SessionOptions(hints=Hints(languages=languages)) for languages in ((), ("en",), ("fr",))]
    with Engine(bilingual(), tiny_tokenizer()) as engine:
        expected = [[word.text for word in model_events(engine, one)] for one in options]
    assert len({tuple(texts) for texts in expected}) == 3
    with hosting(bilingual()) as hosted, hosted.worker() as remote:
        assert [[word.text for word in model_events(remote, one)] for one in options] == expected


def test_hints_and_the_text_of_a_lost_stream_reach_the_engine() -> None:
    with Engine(random_runner(), tiny_tokenizer()) as engine:
        plain = model_events(engine, SessionOptions(continues=Continuation()))
        pieces = tuple(event.text for event in plain if isinstance(event, History) and event.end <= 24)
        options = [
            SessionOptions(hints=Hints(prompt="the quick brown fox", languages=["en", "fr"])),
            SessionOptions(hints=Hints(keywords=[Keyword("word", 10.0)])),
            SessionOptions(continues=Continuation(7, pieces)),
            SessionOptions(continues=Continuation(7)),
        ]
        expected = [model_events(engine, one) for one in options]
    assert len({str(one) for one in expected}) == 4
    with hosting(random_runner()) as hosted, hosted.worker() as remote:
        assert [model_events(remote, one) for one in options] == expected
        with pytest.raises(ConfigError, match="history"):
            remote.open(SessionOptions(continues=Continuation(7, ("AAAA",))))


def test_keywords_change_in_mid_stream_and_only_of_their_session() -> None:
    audio_S, hints = noise_and_tones(4.0, seed=3), Hints(keywords=[Keyword("word", 10.0)])

    def words(session: LiveSession, changes: bool) -> list[str]:
        session.send(audio_S[:FRAME_SAMPLES])
        if changes:
            session.set_hints(hints)
        session.send(audio_S[FRAME_SAMPLES:])
        session.finish()
        return [event.text for event in session if isinstance(event, Word)]

    with hosting(random_runner()) as hosted, hosted.worker() as remote:
        plain = words(remote.open(), changes=False)
        steered, other = remote.open(), remote.open()
        other.send(audio_S)
        other.finish()
        assert words(steered, changes=True) != plain
        assert [event.text for event in other if isinstance(event, Word)] == plain
        wait_for(lambda: remote.active == 0)
        assert words(remote.open(), changes=False) == plain  # in a slot that was steered


def test_an_unreferenced_session_is_freed() -> None:
    with hosting(ScriptRunner(slots=1)) as hosted, hosted.worker() as engine:
        session = engine.open()
        wait_for(lambda: engine.active == 1)
        del session
        wait_for(lambda: engine.active == 0)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.FRAMES, np.array([0], np.uint32).tobytes()),  # the slot of the other worker
        (Kind.OPERATION, b'[0, "Restore"]'),  # the same
        (Kind.OPERATION, b'[1, "ForceToken", 1, 5]'),  # of another row than the session has
        (Kind.OPERATION, b'[1, "EncodeAhead", 2]'),  # by an engine that encodes nothing ahead
        (Kind.OPERATION, b'[1, "Reset", 1.6]'),  # a delay that the model does not have
        (Kind.OPERATION, b'[1, "Reset", 0, 0, 0, 0]'),
        (Kind.OPERATION, b'[1, "Forget"]'),
        (Kind.OPERATION, b"\0\0\0\0"),
    ],
)
def test_an_invalid_message_ends_only_its_sender(kind: Kind, payload: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with hosting(ScriptRunner(slots=2)) as hosted, hosted.worker() as good:
        with hosted.worker() as bad:
            kept = good.open()
            wait_for(lambda: good.active == 1)
            session = bad.open()
            with bad:
                bad.devices[0].put(kind, payload)
                bad.devices[0].flush()
            with pytest.raises(EngineError):
                list(session)
        kept.send(sound_of("sea", frames=3))
        kept.finish()
        assert isinstance(list(kept)[-1], Final)
    assert "invalid message of a worker process" in caplog.text
