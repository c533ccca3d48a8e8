"""Sessions of text to speech on a fake model, whose audio is what each slot has read."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from tests.fakes import tiny_tokenizer

from slipstream.engine.reading import Audio, Reading, SpeechOptions
from slipstream.engine.speech import SpeechEngine
from slipstream.errors import ConfigError, EngineError, Overloaded, SessionClosed
from slipstream.events import Word
from slipstream.model.script import TokenIds
from slipstream.model.speech import SpeechOutput, Voice
from slipstream.testing import small_tts_config

TEXT = 'the quick brown fox <break time="0.4s"/> jumps over'


@dataclass
class EchoRunner:
    """Writes `new_word` in each step. A frame of audio is the text token that was read `latency_steps` before."""

    slots: int = 2
    gate: threading.Semaphore | None = None
    crash_after: int = 10**9
    codebooks: int = 4
    latency_steps: int = 7
    config: object = field(default_factory=small_tts_config)

    def __post_init__(self) -> None:
        self.read: list[list[int]] = [[] for _ in range(self.slots)]
        self.steps = 0

    def reset(self, slot, voice, seed):
        if voice is not None and voice.name == "wrong":
            raise ConfigError("this voice is of another model")
        self.read[slot] = []

    def step(self, decide, active_B):
        if self.gate is not None:
            self.gate.acquire()
        self.steps += 1
        if self.steps > self.crash_after:
            raise RuntimeError("the device is on fire")
        text_B, _ = decide(np.zeros(self.slots, np.int64))
        pcm, audio = np.zeros((self.slots, 2), np.float32), np.zeros(self.slots, np.bool_)
        for slot in np.flatnonzero(active_B):
            self.read[slot].append(int(text_B[slot]))
            audio[slot] = len(self.read[slot]) > self.latency_steps
            if audio[slot]:
                pcm[slot] = self.read[slot][-1 - self.latency_steps]
        return SpeechOutput(pcm, audio)

    def snapshot(self, slot):
        return list(self.read[slot])

    def restore(self, slot, state):
        self.read[slot] = list(state)


@pytest.fixture
def engine():
    engine = SpeechEngine(EchoRunner(), tiny_tokenizer(), max_waiting=1)
    yield engine
    engine.close()


def spoken(events) -> tuple[list[float], list[Word]]:
    events = list(events)
    frames = [event for event in events if isinstance(event, Audio)]
    assert [frame.start for frame in frames] == pytest.approx(np.arange(len(frames)) * 0.08)
    return [float(frame.samples[0]) for frame in frames], [event for event in events if isinstance(event, Word)]


def whole(engine: SpeechEngine, text: str = TEXT):
    session = engine.open()
    session.feed(text)
    session.end()
    return spoken(session)


def test_words_have_the_times_of_their_audio(engine: SpeechEngine) -> None:
    frames, words = whole(engine)
    assert [word.text for word in words] == ["the", "quick", "brown", "fox", "jumps", "over"]
    card = TokenIds(card=401).card
    for word in words:
        first = tiny_tokenizer().encode(word.text)[0]
        at = round(word.start * 12.5)
        # The word's step has its first token, or that of its speaker before it.
        assert first in [int(frames[at]) % card, int(frames[at + 1]) % card]
        assert word.end > word.start
    assert words[4].start - words[3].end >= 0
    assert len(frames) == round(words[-1].end * 12.5) + SpeechOptions().final_padding


@pytest.mark.parametrize("size", [1, 5])
def test_text_that_arrives_in_pieces_gives_the_same_speech(engine: SpeechEngine, size: int) -> None:
    session = engine.open()
    events = []
    for start in range(0, len(TEXT), size):
        session.feed(TEXT[start : start + size])
        events += session.poll()
    session.end()
    assert spoken([*events, *session]) == whole(engine)


def test_a_reading_waits_only_for_words_that_it_needs() -> None:
    reading = Reading(EchoRunner(), tiny_tokenizer(), None, SpeechOptions())

    def run() -> int:
        steps = 0
        while reading.ready:
            reading.decide(0)
            reading.advance(None)
            steps += 1
        return steps

    assert run() == 2  # the padding at the start
    reading.feed("the quick ")
    assert run() == 0  # the model reads two words ahead
    reading.feed("brown ")
    assert run() > 0
    reading.end()
    assert run() > 0
    assert reading.finished


def test_a_flush_speaks_the_text_so_far_and_more_may_follow(engine: SpeechEngine) -> None:
    session = engine.open()
    session.feed("the quick")
    session.flush()
    events: list[object] = []
    stream = iter(session)
    while not (isinstance(event := next(stream), Word) and event.text == "quick"):
        events.append(event)
    frames, words = spoken([*events, event])
    assert [word.text for word in words] == ["the", "quick"]
    session.flush()  # nothing new: no effect
    session.feed("brown fox")
    session.end()
    frames, words = spoken([*events, event, *stream])
    assert [word.text for word in words] == ["the", "quick", "brown", "fox"]
    assert [word.start for word in words] == sorted(word.start for word in words)
    assert len(frames) == round(words[-1].end * 12.5) + SpeechOptions().final_padding


def test_a_flush_runs_until_the_audio_of_its_words_is_out() -> None:
    reading = Reading(runner := EchoRunner(), tiny_tokenizer(), None, SpeechOptions())

    def run() -> list[object]:
        events = []
        while reading.ready:
            reading.decide(0)
            events += reading.advance(np.zeros(2, np.float32))
        return events

    reading.feed("the quick brown")
    run()
    reading.flush()
    frames = [event for event in run() if isinstance(event, Audio)]
    word = next(start for text, start in reversed(reading._state.transcript) if text == "brown")
    length = len(tiny_tokenizer().encode("brown"))
    assert round(frames[-1].start * 12.5) >= word + length
    assert round(frames[-1].start * 12.5) <= word + length + runner.latency_steps + SpeechOptions().final_padding
    reading.flush()
    assert not reading.ready
    reading.feed("fox ")
    assert not reading.ready  # as without a flush, it waits for the words after it
    reading.flush()
    assert run()
    reading.end()
    run()
    assert reading.finished


def test_a_text_without_words_ends_without_audio(engine: SpeechEngine) -> None:
    assert whole(engine, "  ") == ([], [])
    session = engine.open()
    while not engine.runner.read[0]:  # the padding at the start needs no text
        pass
    session.end()
    assert list(session) == []


def test_more_sessions_than_slots_wait_in_turn(engine: SpeechEngine) -> None:
    expected = whole(engine)
    sessions = [engine.open() for _ in range(3)]
    with pytest.raises(Overloaded, match="all 2 slots are in use, and 1 sessions wait for one"):
        engine.open()
    for session in sessions:
        session.feed(TEXT)
        session.end()
    assert [spoken(session) for session in sessions] == [expected] * 3


def test_cancelling_stops_within_a_step_and_frees_the_slot() -> None:
    gate = threading.Semaphore(9)
    runner = EchoRunner(slots=1, gate=gate)
    engine = SpeechEngine(runner, tiny_tokenizer())
    session = engine.open()
    session.feed(TEXT)
    session.end()
    events = iter(session)
    next(events)
    while len(session._entry.events) < 2:  # made meanwhile, and not read
        pass
    session.cancel()
    assert session.ended
    assert list(events) == []
    assert list(session) == []
    steps = runner.steps
    other = engine.open()
    other.feed("fox")
    other.end()
    gate.release(200)
    assert [word.text for word in spoken(other)[1]] == ["fox"]
    assert steps <= 10
    with pytest.raises(SessionClosed, match="open another"):
        session.feed("more")
    engine.close()


def test_a_snapshot_continues_as_the_session_does() -> None:
    gate = threading.Semaphore(12)
    engine = SpeechEngine(EchoRunner(gate=gate), tiny_tokenizer())
    session = engine.open()
    session.feed(TEXT)
    session.end()
    before = []
    while len([event for event in before if isinstance(event, Audio)]) < 4:
        before += session.poll()
    threading.Timer(0.05, gate.release, [400]).start()
    snapshot = session.snapshot()
    copy = engine.open(snapshot=snapshot)
    rest, again = list(session), list(copy)
    assert [str(event) for event in again] == [str(event) for event in rest[len(rest) - len(again) :]]
    assert again
    engine.close()


def test_a_voice_of_another_model_fails_its_session_only(engine: SpeechEngine) -> None:
    session = engine.open(Voice("wrong"))
    with pytest.raises(ConfigError, match="another model"):
        list(session)
    assert whole(engine)[1]


def test_a_failed_step_ends_every_session_and_refuses_others() -> None:
    engine = SpeechEngine(EchoRunner(crash_after=10), tiny_tokenizer())
    session = engine.open()
    session.feed(TEXT)
    with pytest.raises(EngineError, match="the device is on fire"):
        list(session)
    with pytest.raises(EngineError, match="has stopped"):
        engine.open()
    assert not engine.alive


def test_closing_ends_open_sessions() -> None:
    engine = SpeechEngine(EchoRunner(), tiny_tokenizer())
    session = engine.open()
    engine.close()
    with pytest.raises(SessionClosed, match="engine is closed"):
        list(session)
    with pytest.raises(SessionClosed, match="engine is closed"):
        engine.open()
