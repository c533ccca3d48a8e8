"""The text of a stream as its client keeps it, and sessions that continue with it."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models import noise_and_tones, random_model, stt_config

from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.engine.engine import Engine
from slipstream.engine.history import MAX_FRAMES, PIECE_FRAMES, Continuation, decode, encode
from slipstream.engine.live import LiveSession
from slipstream.engine.options import SessionOptions
from slipstream.errors import ConfigError
from slipstream.events import Event, History, Word
from slipstream.hints import Hints
from slipstream.model.config import PAD_ID
from slipstream.model.text import Tokenizer
from slipstream.testing import ScriptRunner, sound_of, speech, tiny_tokenizer, tokenizer_proto

FRAME = 1920
SECONDS = 6.0
TEXT = st.lists(st.one_of(st.just(PAD_ID), st.integers(0, 300)), max_size=80)


@given(first=st.integers(0, 2**31 - 100), tokens=TEXT)
def test_a_history_is_decoded_to_the_encoded_text(first: int, tokens: list[int]) -> None:
    assert decode(encode(first, tokens, tiny_tokenizer()), tiny_tokenizer()) == (first, tokens)


def test_a_second_of_speech_takes_few_characters() -> None:
    tokens = [3, 3, 0, 271, 3, 3, 3, 3, 0, 301, 299, 3]
    assert len(encode(45_000, tokens, tiny_tokenizer())) <= 32


@given(
    st.one_of(st.text(max_size=40), st.binary(max_size=40).map(lambda data: base64.urlsafe_b64encode(data).decode()))
)
def test_any_text_is_decoded_or_refused(piece: str) -> None:
    try:
        first, tokens = decode(piece, tiny_tokenizer())
    except ConfigError:
        return
    assert first >= 0
    assert len(tokens) <= MAX_FRAMES


@given(st.binary(max_size=60))
def test_any_numbers_are_decoded_or_refused(data: bytes) -> None:
    piece = base64.urlsafe_b64encode(b"\x01" + tiny_tokenizer().digest + data).rstrip(b"=").decode()
    try:
        first, tokens = decode(piece, tiny_tokenizer())
    except ConfigError:
        return
    assert 0 <= first <= 2**31
    assert len(tokens) <= MAX_FRAMES
    assert all(0 <= token < tiny_tokenizer().vocab_size for token in tokens)


def piece(*numbers: int, version: int = 1) -> str:
    """A piece with any numbers below 128."""
    return base64.urlsafe_b64encode(bytes([version, *tiny_tokenizer().digest, *numbers])).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a b", "not URL-safe base64"),
        ("\N{SNOWMAN}", "not URL-safe base64"),
        ("", "expected a text of this server's `history` messages"),
        (piece(0, 5, version=2), "expected a text of this server's `history` messages"),
        (piece(), "expected a text of this server's `history` messages"),
        (piece(0), "its end is missing"),
        (piece(0, 2, 100), "its end is missing"),
        (piece(0, 2, 100, 0x80), "its end is missing"),
        (piece(0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 0), "a number is too large"),
        (piece(0xFE, 0xFF, 0xFF, 0xFF, 0x07, 9), "frame 2147483646 is too large"),
        (piece(0, 0xFF, 0x7F), "more than 3000 frames"),
        (piece(0, 1, 0x90, 0x03, 0), "400 is no text token of this model"),
        (piece(0, 1, PAD_ID, 0), "3 is no text token"),
    ],
)
def test_an_invalid_piece_is_refused_and_named(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        decode(text, tiny_tokenizer())


def test_a_text_begins_before_the_first_frame_and_later_pieces_count(tmp_path) -> None:
    first, second = encode(10, [5, 6, 7], tiny_tokenizer()), encode(13, [8, PAD_ID], tiny_tokenizer())
    assert Continuation(12, (first, second)).text(tiny_tokenizer()) == {-1: 6, 0: 7, 1: 8, 2: PAD_ID}
    again = encode(12, [9, 10], tiny_tokenizer())
    assert Continuation(12, (first, second, again)).text(tiny_tokenizer()) == {-1: 6, 0: 9, 1: 10, 2: PAD_ID}
    with pytest.raises(ConfigError, match="more than 3000 frames"):
        Continuation(0, tuple(encode(n * 2000, [PAD_ID] * 2000, tiny_tokenizer()) for n in (0, 1))).text(
            tiny_tokenizer()
        )
    with pytest.raises(ConfigError, match="8 is no text token of this model, which has 8"):  # the tokenizer has more
        Continuation(12, (first, second)).text(tiny_tokenizer(), text_vocab=8)
    with pytest.raises(ConfigError, match="first frame -1"):
        Continuation(-1)
    (tmp_path / "other.model").write_bytes(tokenizer_proto(vocab_size=350))
    assert Continuation(12, (first, second)).text(Tokenizer(tmp_path / "other.model")) == {}


# ------------------------------------------------------------------------------------------------------ on an engine


@pytest.fixture(scope="module")
def engine():
    """Random weights, an encoder with sinusoidal positions, and contexts that are much shorter than the audio."""
    config = stt_config(codec="whisper", text_vocab=tiny_tokenizer().vocab_size)
    with Engine(OnnxRunner(config, *random_model(config), slots=4, threads=1), tiny_tokenizer()) as engine:
        yield engine


def events_of(session: LiveSession, audio_S: np.ndarray) -> list[Event]:
    session.send(audio_S)
    session.finish()
    return list(session)


def text_of(events: list[Event]) -> dict[int, int]:
    """The token of each frame, by the pieces of history."""
    pieces = [event for event in events if isinstance(event, History)]
    found = {}
    for one in pieces:
        first, tokens = decode(one.text, tiny_tokenizer())
        assert first + len(tokens) == one.end
        found |= dict(enumerate(tokens, start=first))
    return found


def words_after(events: list[Event], seconds: float, offset: float = 0.0) -> list[tuple[str, float]]:
    words = [(event.text, round(event.start + offset, 3)) for event in events if isinstance(event, Word)]
    return [word for word in words if word[1] > seconds]


HINTS = [Hints(), Hints(keywords=["fox"]), Hints(beam=2), Hints(delay=0.8)]


@pytest.mark.parametrize("hints", HINTS, ids=["plain", "keywords", "beam", "delay"])
def test_a_session_that_continues_writes_the_words_of_the_whole_stream(engine: Engine, hints: Hints) -> None:
    audio_S = noise_and_tones(SECONDS, seed=6)
    whole = events_of(engine.open(SessionOptions(hints=hints, continues=Continuation())), audio_S)
    pieces = [event for event in whole if isinstance(event, History)]
    first, until = 20, 48
    given = [piece for piece in pieces if piece.end <= until]
    continues = Continuation(first, tuple(piece.text for piece in given))
    with engine.open(SessionOptions(hints=hints, continues=continues)) as session:
        later = events_of(session, audio_S[first * FRAME :])
    expected, found = text_of(whole), text_of(later)
    assert min(found) == given[-1].end  # the client has what is before
    if hints.width == 1:  # a beam weighs the words before, which it does not see again
        assert {frame: expected[frame] for frame in found if frame in expected} == {
            frame: found[frame] for frame in found if frame in expected
        }
        assert words_after(later, until * 0.08, first * 0.08) == words_after(whole, until * 0.08) != []
    without = events_of(engine.open(SessionOptions(hints=hints)), audio_S[first * FRAME :])
    assert words_after(without, until * 0.08, first * 0.08) != words_after(whole, until * 0.08)


def test_a_flush_and_a_restart_do_not_enter_the_history(engine: Engine) -> None:
    audio_S = noise_and_tones(SECONDS, seed=7)
    expected = text_of(events_of(engine.open(SessionOptions(continues=Continuation())), audio_S))
    with engine.open(SessionOptions(continues=Continuation(90, (encode(95, [7] * 40, tiny_tokenizer()),)))) as session:
        session.send(noise_and_tones(1.0, seed=8))
        session.restart()
        session.send(audio_S[: 30 * FRAME])
        session.flush()
        session.send(audio_S[30 * FRAME :])
        session.finish()
        events = list(session)
    last = max(place for place, event in enumerate(events) if type(event).__name__ == "Ready")
    assert text_of(events[last:]) == expected
    assert list(expected) == list(range(len(expected) // PIECE_FRAMES * PIECE_FRAMES))


def test_the_frames_of_silence_before_the_audio_have_no_number() -> None:
    with Engine(ScriptRunner(), tiny_tokenizer(), silence_prefix_seconds=0.4) as engine:
        audio_S = speech(3, words=12)
        whole = events_of(engine.open(SessionOptions(continues=Continuation())), audio_S)
        first = 24
        pieces = tuple(event.text for event in whole if isinstance(event, History) and event.end <= 36)
        later = events_of(engine.open(SessionOptions(continues=Continuation(first, pieces))), audio_S[first * FRAME :])
    expected, found = text_of(whole), text_of(later)
    assert (min(expected), min(found)) == (0, 36)
    assert all(found[frame] == expected[frame] for frame in found.keys() & expected.keys())


def test_the_history_continues_after_the_watchdog_has_reset_the_model() -> None:
    with Engine(ScriptRunner(loop_after=40), tiny_tokenizer()) as engine:
        events = events_of(engine.open(SessionOptions(continues=Continuation(500))), speech(5, words=30))
    assert any(type(event).__name__ == "Recovered" for event in events)
    frames = list(text_of(events))
    assert frames[0] == 500
    assert frames == sorted(set(frames))


def test_text_of_a_token_that_the_model_does_not_have_is_refused_when_a_session_opens() -> None:
    with Engine(ScriptRunner(), tiny_tokenizer()) as engine:
        with pytest.raises(ConfigError, match="400 is no text token"):
            engine.open(SessionOptions(continues=Continuation(0, (piece(0, 1, 0x90, 0x03, 0),))))
        assert engine.active == 0
        session = engine.open()
        assert words_after(events_of(session, sound_of("fox", 8)), -1.0)
