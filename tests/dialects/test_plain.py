"""The plain dialect: raw PCM in, JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice, pairwise
from urllib.parse import parse_qsl

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialects.sequences import messages as messages_of
from tests.dialects.sequences import sequences

from slipstream.audio import RawFormat
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.plain import ORDER, PlainDialect, open_dialect, parse_format
from slipstream.dialects.protocol import (
    PIECE_SAMPLES,
    Audio,
    CloseCode,
    Command,
    Finish,
    Marker,
    Open,
    ProtocolError,
    Restart,
    Send,
)
from slipstream.engine.history import Continuation
from slipstream.engine.options import SessionOptions
from slipstream.events import (
    EndOfTurn,
    Final,
    Flushed,
    History,
    MarkerReached,
    OpenWord,
    PartialWord,
    Ready,
    Step,
    Turn,
    Word,
)

INFO = StreamInfo(model="tiny", delay_seconds=0.5, frame_seconds=0.08)


def dialect(encoding: str = "pcm_s16le", rate: int = 24_000) -> PlainDialect:
    return PlainDialect(parse_format({"encoding": encoding, "sample_rate": str(rate)}), INFO, "7f")


def decoded(commands: Iterable[Command]) -> list[float]:
    audio = [command.pcm_S for command in commands if isinstance(command, Audio)]
    return list(np.concatenate([np.zeros(0), *audio]))


def test_pcm_may_be_cut_inside_a_sample() -> None:
    data = np.array([0, 16384, -32768], "<i2").tobytes()
    stream = dialect()
    assert decoded(command for byte in data for command in stream.receive(bytes([byte]))) == [0.0, 0.5, -1.0]


def test_a_flush_brings_what_the_resampler_holds() -> None:
    stream = dialect("mulaw", 8_000)
    before = decoded(stream.receive(b"\xff" * 4_000))
    commands = list(stream.receive('{"type": "flush", "id": 5}'))
    assert len(before) + len(decoded(commands)) == 12_000
    assert commands[-1] == Marker(5)
    again = [*stream.receive(b"\xff" * 4_000), *stream.receive('{"type": "close"}')]
    assert len(decoded(again)) == 12_000


@given(rate=st.sampled_from([8_000, 16_000, 44_100, 48_000]), channels=st.integers(1, 2), seed=st.integers(0, 2**32))
def test_the_frames_after_a_flush_are_those_without_it(rate: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    format = RawFormat("pcm_f32le", rate, channels)
    data = rng.uniform(-1, 1, (int(rng.integers(1, rate)), channels)).astype("<f4").tobytes()
    cuts = [0, *sorted(rng.integers(0, len(data) + 1, 12)), len(data)]
    flushed, whole = PlainDialect(format, INFO), PlainDialect(format, INFO)
    got, changed = [np.zeros(0)], []
    for start, end in pairwise(cuts):
        got += [np.array(decoded(flushed.receive(data[start:end])))]
        if rng.random() < 0.5:
            first = sum(map(len, got))
            got += [np.array(decoded(flushed.receive('{"type":"flush"}')))]
            changed.append((first, sum(map(len, got))))
    got_S = np.concatenate([*got, decoded(flushed.receive('{"type":"close"}'))])
    close = [*whole.receive(data), *whole.receive('{"type":"close"}')]
    expected_S = np.array(decoded(close))
    assert len(got_S) == len(expected_S)
    same = np.ones(len(got_S), bool)
    for first, end in changed:
        same[first:end] = False
        assert end - first < 0.12 * 24_000
    np.testing.assert_array_equal(got_S[same], expected_S[same])
    clear = [frame for frame in range(0, len(same), 1920) if same[frame : frame + 1920].all()]
    assert all(np.array_equal(got_S[at : at + 1920], expected_S[at : at + 1920]) for at in clear)


def test_the_session_opens_with_the_connection() -> None:
    assert list(dialect().open()) == [Open(SessionOptions(steps=True), "tiny")]


def test_parameters_that_are_unknown_or_repeated_are_refused() -> None:
    query = "encoding=mulaw&sample_rate=8000&channels=2&model=tiny&prompt=a&resume=a&received=1&history=0"
    pairs = [*parse_qsl(query), ("keyword", "b"), ("keyword", "c"), ("language", "en"), ("language", "fr")]
    open_dialect(StreamRequest(Models({"tiny": INFO}), [*pairs, ("auth_id", "secret")]))
    expected = "encoding, sample_rate, channels, resume, received, history, model, prompt, delay, alternatives, "
    with pytest.raises(
        ProtocolError, match=f"unknown parameter 'samplerate': expected {expected}keyword, language, auth_id"
    ):
        open_dialect(StreamRequest(Models({"tiny": INFO}), [("samplerate", "8000")]))
    for name, _ in parse_qsl(query):
        with pytest.raises(ProtocolError, match=f"{name}: expected one value, got 2"):
            open_dialect(StreamRequest(Models({"tiny": INFO}), [*pairs, (name, "1")]))


def test_languages_are_those_of_the_address() -> None:
    request = StreamRequest(Models({"tiny": INFO}), (("language", "en"), ("language", "fr")), {}, "7f")
    (opening,) = open_dialect(request).open()
    assert isinstance(opening, Open)
    assert opening.options.hints.languages == ("en", "fr")


def test_words_and_turns_have_their_language_and_omission() -> None:
    word = Word("oui", 1.0, 1.4, 0.9, 0.25, "fr", 0.75)
    turn = Turn(1.0, 1.4, "fr", 0.5)
    sent = [json.loads(one.message) for event in (word, turn) for one in dialect().handle(event, 0)]
    language = {"language": "fr", "language_confidence": 0.75}
    times = {"start": 1.0, "end": 1.4}
    assert sent == [
        {"type": "word", "text": "oui", **times, "confidence": 0.9, "omission": 0.25, **language},
        {"type": "turn", **times, "language": "fr", "language_confidence": 0.5},
    ]


def test_controls() -> None:
    assert list(dialect().receive('{"type": "close"}')) == [Finish()]
    assert list(dialect().receive('{"type": "flush"}')) == [Marker(0)]
    stream = dialect()
    list(stream.receive(b"\1"))
    assert list(stream.receive('{"type": "restart"}')) == [Restart()]
    assert decoded(stream.receive(b"\0\x40")) == [0.5]  # the half sample before the restart is forgotten


def test_events() -> None:
    stream = dialect()
    events = [
        Ready(),
        PartialWord("hel", 1.0),
        OpenWord("hello", 1.0, 0.9),
        Word("hello", 1.0, 1.4, 0.9),
        Step(2, (0.5, 0.25), 960),
        Step(3, (0.5, 0.25), 960, 0.33333),
        EndOfTurn(2.0),
        Turn(1.0, 1.4),
        Flushed(2.0, 0.01),
        MarkerReached(7),
        Final(2.5, 0.02),
    ]
    sent = [action for event in events for action in stream.handle(event, 0)]
    assert all(isinstance(action, Send) for action in sent)
    assert [action.droppable for action in sent] == [False, True, True, False, True, True, False, False, False, False]
    messages = [json.loads(action.message) for action in sent]
    assert messages == [
        {"type": "ready", "model": "tiny", "delay": 0.5, "request_id": "7f"},
        {"type": "partial", "text": "hel", "start": 1.0},
        {"type": "partial", "text": "hello", "start": 1.0},
        {"type": "word", "text": "hello", "start": 1.0, "end": 1.4, "confidence": 0.9},
        {"type": "step", "index": 2, "time": 0.16, "pause": [0.5, 0.25], "buffered": 960},
        {"type": "step", "index": 3, "time": 0.24, "pause": [0.5, 0.25], "buffered": 960, "end_of_turn": 0.3333},
        {"type": "end_of_turn", "time": 2.0},
        {"type": "turn", "start": 1.0, "end": 1.4},
        {"type": "flushed", "id": 7},
        {"type": "done", "duration": 2.5, "flush_seconds": 0.02},
    ]
    assert json.loads(stream.error("no", CloseCode.TOO_BIG)) == {"type": "error", "message": "no", "code": 1009}
    assert json.loads(stream.queued(3)) == {"type": "queued", "position": 3, "request_id": "7f"}


def test_format_defaults() -> None:
    assert parse_format({}) == RawFormat("pcm_s16le", 24_000, 1)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"encoding": "mp3"}, "encoding='mp3': expected one of pcm_s16le"),
        ({"sample_rate": "fast"}, "sample_rate='fast'"),
        ({"sample_rate": "-8000"}, "sample_rate='-8000'"),
        ({"sample_rate": "٣"}, "sample_rate"),
        ({"sample_rate": "0"}, "sample_rate=0: expected at least 4000 Hz"),
        ({"sample_rate": "1000"}, "sample_rate=1000: expected at least 4000 Hz"),
        ({"sample_rate": "3999"}, "sample_rate=3999: expected at least 4000 Hz"),
        ({"sample_rate": "800000"}, "between 1000 and 768000"),
        ({"sample_rate": "9" * 400}, "sample_rate"),
        ({"channels": "0"}, "expected 1 to 8"),
        ({"channels": "9"}, "expected 1 to 8"),
    ],
)
def test_a_wrong_format_is_named(query: dict[str, str], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        parse_format(query)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("", "not a JSON message"),
        ("[" * 100_000, "not a JSON message"),
        ("[]", "got list"),
        ("{}", "unknown type None"),
        ('{"type": "stop"}', "unknown type 'stop'"),
        ('{"type": "restart", "x": [[]]}', "unknown key 'x'"),
        ('{"type": "flush", "id": "a"}', "64-bit integer"),
        ('{"type": "flush", "id": 9223372036854775808}', "64-bit integer"),
        ('{"type": "flush", "id": ' + "9" * 5000 + "}", "not a JSON message"),
        (np.array([np.nan], "<f4").tobytes(), "peak"),
        (np.array([300], "<f4").tobytes(), "peak"),
    ],
)
def test_errors_name_the_problem(message: bytes | str, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        list(dialect("pcm_f32le").receive(message))


@pytest.mark.parametrize("channels", ["1", "8"])
@pytest.mark.parametrize("rate", ["4000", "24000", "768000"])
def test_a_long_message_is_decoded_in_pieces(rate: str, channels: str) -> None:
    stream = PlainDialect(parse_format({"encoding": "mulaw", "sample_rate": rate, "channels": channels}), INFO)
    pieces = stream.receive(b"\xff" * (4 << 20))
    sizes = [len(piece.pcm_S) for piece in islice(pieces, 20) if isinstance(piece, Audio)]
    assert len(sizes) == 20
    assert max(sizes) <= PIECE_SAMPLES + 2400  # what the resampler held back


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "id", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
).map(json.dumps)
CONTROLS = st.sampled_from(['{"type": "flush"}', '{"type": "restart"}', '{"type": "close"}'])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["pcm_s16le", "pcm_s24le", "pcm_f32le", "mulaw", "alaw"]),
    st.sampled_from([8_000, 24_000, 44_100]),
    st.lists(st.binary(max_size=50) | st.text(max_size=30) | JSON | CONTROLS, max_size=5),
)
def test_any_messages_are_commands_or_a_clean_error(encoding: str, rate: int, messages: list[bytes | str]) -> None:
    stream = dialect(encoding, rate)
    for message in messages:
        try:
            list(stream.receive(message))
        except ProtocolError:
            return


SAMPLES: dict[str, bytes | str] = {
    "audio": b"\0\x40" * 50,
    "flush": '{"type": "flush", "id": 3}',
    "restart": '{"type": "restart"}',
    "close": '{"type": "close"}',
}
DONE = {"audio": Audio, "flush": Marker, "restart": Restart, "close": Finish}


@given(st.data())
def test_the_table_of_legal_messages(data: st.DataObject) -> None:
    assert messages_of(ORDER) == sorted(SAMPLES)
    stream, state = dialect(), "open"
    for kind in data.draw(sequences(ORDER)):
        commands = list(stream.receive(SAMPLES[kind]))
        last = [type(command) for command in commands[-1:]]
        assert last == ([DONE[kind]] if state == "open" else [])
        state = ORDER[state][kind]
    for kind in ("stop", "audio"):
        if state == "open":
            with pytest.raises(ProtocolError, match=f"unknown type '{kind}'"):
                list(stream.receive(json.dumps({"type": kind})))


def test_audio_is_converted_to_the_models_sample_rate() -> None:
    info = StreamInfo("small", 0.5, 0.08, sample_rate=16_000)
    stream = PlainDialect(parse_format({"encoding": "pcm_f32le", "sample_rate": "8000"}), info)
    commands = [*stream.receive(np.zeros(8_000, "<f4").tobytes()), *stream.receive('{"type": "flush"}')]
    assert sum(len(command.pcm_S) for command in commands if isinstance(command, Audio)) == 16_000


def opened_with(history: str | None) -> SessionOptions:
    query = [] if history is None else [("history", history)]
    (action,) = open_dialect(StreamRequest(Models({"tiny": INFO}), query)).open()
    assert isinstance(action, Open)
    return action.options


def test_the_history_of_the_text_is_sent_on_request_and_given_back_in_the_address() -> None:
    assert opened_with(None).continues is None
    assert opened_with("0").continues == Continuation()
    assert opened_with("512.AAEC.AwQF").continues == Continuation(512, ("AAEC", "AwQF"))
    (sent,) = dialect().handle(History(524, "AwQF"), 0)
    assert sent == Send('{"type":"history","end":524,"text":"AwQF"}')


@pytest.mark.parametrize("history", ["", "x", "-1", "e3.AA", "99999999999", "\N{SUPERSCRIPT TWO}"])
def test_an_invalid_first_frame_is_named(history: str) -> None:
    with pytest.raises(ProtocolError, match="history="):
        opened_with(history)
    with pytest.raises(ProtocolError, match="first frame 2147483648"):
        opened_with("2147483648")
