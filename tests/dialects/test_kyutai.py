"""Kyutai's dialect, byte for byte, and its dialect against the plain way of decoding."""

from __future__ import annotations

import io
import math
import struct
from itertools import islice
from typing import Any

import msgpack
import numpy as np
import pytest
from benchmarks.attacks.opus import OPUS_HEAD, ogg_page, opus_bomb
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slipstream.dialects import kyutai
from slipstream.dialects.kyutai import KyutaiDialect
from slipstream.dialects.protocol import PIECE_SAMPLES, Audio, Command, Marker, ProtocolError, Restart

FLOATS = st.lists(st.floats(-1, 1, width=32), max_size=40)


def audio_of(data: bytes) -> list[float]:
    samples: list[float] = []
    for command in KyutaiDialect().receive(data):
        assert isinstance(command, Audio)
        samples += command.pcm_S.tolist()
    return samples


# What rmp_serde writes for the reference's OutMsg (struct maps, human readable): a recorded conversation.
RECORDED_OUT = [
    (kyutai.ready(), "81a474797065a55265616479"),
    (
        kyutai.step(7, [0.5, 0.25, 1.0, 0.0], 1920),
        "84a474797065a453746570a8737465705f69647807a370727394ca3f000000ca3e800000ca3f800000ca00000000"
        "ac62756666657265645f70636dcd0780",
    ),
    (kyutai.step(300, [], 0), "84a474797065a453746570a8737465705f696478cd012ca370727390ac62756666657265645f70636d00"),
    (
        kyutai.word("été", 1.76),
        "83a474797065a4576f7264a474657874a5c3a974c3a9aa73746172745f74696d65cb3ffc28f5c28f5c29",
    ),
    (kyutai.end_word(2.0), "82a474797065a7456e64576f7264a973746f705f74696d65cb4000000000000000"),
    (kyutai.marker(0), "82a474797065a64d61726b6572a2696400"),
    (kyutai.marker(-1), "82a474797065a64d61726b6572a26964ff"),
    (kyutai.marker(2**40), "82a474797065a64d61726b6572a26964cf0000010000000000"),
    (kyutai.error("no free channels"), "82a474797065a54572726f72a76d657373616765b06e6f2066726565206368616e6e656c73"),
]


@pytest.mark.parametrize(("ours", "recorded"), RECORDED_OUT)
def test_messages_are_the_reference_bytes(ours: bytes, recorded: str) -> None:
    assert ours.hex() == recorded


def test_step_is_what_a_msgpack_writer_would_write() -> None:
    message = {"type": "Step", "step_idx": 70_000, "prs": [0.125] * 17, "buffered_pcm": 3}
    assert kyutai.step(70_000, [0.125] * 17, 3) == msgpack.packb(message, use_single_float=True)


# What Kyutai's Python clients write: msgpack with use_single_float, a list of Python floats.
@pytest.mark.parametrize(
    ("recorded", "samples"),
    [
        ("82a474797065a5417564696fa370636d92ca3f000000cabe800000", [0.5, -0.25]),
        ("82a474797065a5417564696fa370636d90", []),
        ("82a370636d91cb3fe0000000000000a474797065a5417564696f", [0.5]),  # other order, float64
        ("82a474797065a5417564696fa370636d930001ff", [0.0, 1.0, -1.0]),  # JavaScript writes whole numbers as such
    ],
)
def test_audio_of_other_clients_is_decoded(recorded: str, samples: list[float]) -> None:
    assert audio_of(bytes.fromhex(recorded)) == samples


@given(FLOATS, st.sampled_from([1, 3, 1000]))
def test_audio_in_place_equals_audio_unpacked(samples: list[float], repeat: int) -> None:
    pcm = samples * repeat
    packed = msgpack.packb({"type": "Audio", "pcm": pcm}, use_single_float=True)
    swapped = msgpack.packb({"pcm": pcm, "type": "Audio"}, use_single_float=True)  # never read in place
    binary = msgpack.packb({"type": "Audio", "pcm": np.array(pcm, "<f4").tobytes()})
    assert audio_of(packed) == audio_of(swapped) == audio_of(binary) == pcm


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 32767.0, 1e39])
def test_invalid_samples_are_refused(value: float) -> None:
    for single in (True, False):
        if single and value == 1e39:
            continue
        with pytest.raises(ProtocolError, match="peak"):
            decoded(msgpack.packb({"type": "Audio", "pcm": [0.0, value]}, use_single_float=single))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "not a msgpack message: expected a map"),
        (b"\xc1", "not a msgpack message: expected a map"),
        (b"\x91" * 5000, "not a msgpack message: expected a map"),
        (b"\xdf\xff\xff\xff\xff", "not a msgpack message: expected a map"),
        (b"\x82\xa4type\xa5Audio\xa3pcm\xdd\xff\xff\xff\xff", "ends in the middle of a list"),
        (b"\x82\xa4type\xa5Audio\xa3pcm\xc6\xff\xff\xff\xff", "ends in the middle of its binary data"),
        (b"\x82\xa4type\xa5Audio\xa3pcm\x91\xca\0", "ends too early"),
        (b"\x82\xa4type\xa5Audio\xa3pcm\x91\x00\0", "more follows"),
        (b"\x82\xa4type\xa5Audio\xa3pcm\xc4\x04\0\0\0\0\0", "more follows"),
        (b"\x81\xa4type\xdb\xff\xff\xff\xff", "not a msgpack message"),
        (msgpack.packb({"type": "Init"}) + b"\0", "more follows"),
        (msgpack.packb([1, 2]), "expected a map"),
        (msgpack.packb({"typo": "Init"}), "unknown key 'typo'"),
        (msgpack.packb({"type": "init"}), "unknown type 'init'"),
        (msgpack.packb({"type": ["Init"]}), "not a msgpack message"),
        (msgpack.packb({"type": "Init", "id": 1}), "Init has no key 'id'"),
        (msgpack.packb({"type": "Init", "at": msgpack.Timestamp(0)}), "unknown key 'at'"),
        (msgpack.packb({"type": "Marker", "id": 1, "x": [[0] * 1000] * 8}), "at most one other key"),
        (msgpack.packb({"type": "Marker", "x": [[0] * 1000] * 8}), "unknown key 'x'"),
        (msgpack.packb({"type": "Marker"}), "64-bit integer, got None"),
        (msgpack.packb({"type": "Marker", "id": True}), "64-bit integer, got True"),
        (msgpack.packb({"type": "Marker", "id": 2**63}), "64-bit integer"),
        (msgpack.packb({"type": "Marker", "id": [0] * 1000}), "not a msgpack message"),
        (msgpack.packb({"type": "Audio"}), "not NoneType"),
        (msgpack.packb({"type": "Audio", "pcm": b"123"}), "do not divide"),
        (msgpack.packb({"type": "Audio", "pcm": ["a"]}), "not a number"),
        (msgpack.packb({"type": "Audio", "pcm": [True]}), "not a number"),
        (msgpack.packb({"type": "Audio", "pcm": [[0] * 1000]}), "not a msgpack message"),
        (msgpack.packb({"type": "OggOpus", "data": [256]}), "not a byte"),
        (msgpack.packb({"type": "OggOpus", "data": [True]}), "not a byte"),
        (msgpack.packb({"type": "OggOpus", "data": "OggS"}), "list of at most 65536 bytes"),
        (msgpack.packb({"type": "OggOpus", "data": [0] * 65537}), "list of at most 65536 bytes"),
        (msgpack.packb({"type": "OggOpus", "data": b"RIFF"}), "not an Ogg stream"),
    ],
)
def test_errors_name_the_problem(message: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        decoded(message)


def test_markers_and_init() -> None:
    assert decoded(msgpack.packb({"type": "Marker", "id": -3})) == [Marker(-3)]
    assert decoded(msgpack.packb({"id": 7, "type": "Marker"})) == [Marker(7)]
    assert decoded(msgpack.packb({"type": "Init"})) == [Restart()]


SAMPLES: dict[str, bytes | str] = {
    "Init": msgpack.packb({"type": "Init"}),
    "Audio": msgpack.packb({"type": "Audio", "pcm": [0.5, -0.25]}, use_single_float=True),
    "OggOpus": msgpack.packb({"type": "OggOpus", "data": ogg_page(2, [OPUS_HEAD])}),
    "Marker": msgpack.packb({"type": "Marker", "id": 7}),
    "text": '{"type": "Marker", "id": 7}',
}


@given(st.lists(st.sampled_from(sorted(SAMPLES)), max_size=12))
def test_every_message_is_legal_at_any_time(kinds: list[str]) -> None:
    stream = KyutaiDialect()
    for kind in kinds:
        commands = list(stream.receive(SAMPLES[kind]))
        if kind == "Init":
            assert commands == [Restart()]
        elif kind == "Marker":
            assert commands[-1] == Marker(7)
        else:
            assert all(isinstance(command, Audio) for command in commands)
            assert kind != "text" or not commands


@given(st.text(max_size=8).filter(lambda kind: kind not in SAMPLES))
def test_other_messages_are_errors(kind: str) -> None:
    with pytest.raises(ProtocolError):
        decoded(msgpack.packb({"type": kind}))


def decoded(message: bytes) -> list[Command]:
    return list(KyutaiDialect().receive(message))


@pytest.mark.parametrize("value", [0, 0.5, 1 / 3])
@pytest.mark.parametrize("single", [True, False])
def test_a_long_message_is_decoded_in_pieces(value: float, single: bool) -> None:
    """Numbers in 1, 5 or 9 bytes each: the first piece comes before the rest is read, whatever is wrong with that."""
    message = msgpack.packb({"type": "Audio", "pcm": [value] * 100_000 + ["wrong"]}, use_single_float=single)
    pieces = KyutaiDialect().receive(message)
    first = next(pieces)
    assert isinstance(first, Audio)
    assert first.pcm_S.tolist() == [np.float32(value)] * PIECE_SAMPLES
    with pytest.raises(ProtocolError, match="not a number"):
        list(pieces)


@pytest.mark.parametrize("packet", [b"\x18", b"\xfc\xff\xfe", b"\xff\x06" + b"\xff\xfe" * 6, b"\xe0\xff\xfe"])
def test_opus_that_holds_hours_is_decoded_in_pieces(packet: bytes) -> None:
    message = msgpack.packb({"type": "OggOpus", "data": opus_bomb(packet, 1 << 20)})
    pieces = KyutaiDialect().receive(message)
    longest = max(len(piece.pcm_S) for piece in islice(pieces, 100) if isinstance(piece, Audio))
    assert 0 < longest <= PIECE_SAMPLES + 3 * 2880  # a packet of 120 ms more, and what the resampler held back


def test_ogg_without_audio_is_decoded_in_pieces() -> None:
    message = msgpack.packb({"type": "OggOpus", "data": ogg_page(0, []) * 1000})
    assert sum(1 for _ in KyutaiDialect().receive(message)) >= 1000 / 20


def test_too_many_ogg_streams_are_refused() -> None:
    """A decoder is made for each, though it holds no audio."""
    message = msgpack.packb({"type": "OggOpus", "data": ogg_page(2, [OPUS_HEAD]) * 101})
    pieces = KyutaiDialect().receive(message)
    assert all(isinstance(piece, Audio) for piece in islice(pieces, 100))
    with pytest.raises(ProtocolError, match="more than 100 Ogg streams"):
        list(pieces)


# ---------------------------------------------------------------------------------------------------------- Ogg Opus


def ogg_opus(seconds: float, frequency: float = 440.0) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48_000)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        tone = 0.3 * np.sin(2 * np.pi * frequency * np.arange(round(48_000 * seconds)) / 48_000)
        frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], format="flt", layout="mono")
        frame.sample_rate = 48_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()


def opus_messages(data: bytes, size: int, as_list: bool = False) -> list[bytes]:
    cuts = [data[start : start + size] for start in range(0, len(data), size)]
    return [msgpack.packb({"type": "OggOpus", "data": list(cut) if as_list else cut}) for cut in cuts]


def audio_decoded(dialect: KyutaiDialect, messages: list[bytes]) -> np.ndarray[Any, np.dtype[np.float32]]:
    commands = [command for message in messages for command in dialect.receive(message)]
    return np.concatenate([command.pcm_S for command in commands if isinstance(command, Audio)])


@pytest.mark.parametrize("size", [1, 100, 1_000_000])
def test_opus_is_decoded_wherever_it_is_cut(size: int) -> None:
    stream, marker = ogg_opus(1.0), msgpack.packb({"type": "Marker", "id": 1})
    pcm = audio_decoded(KyutaiDialect(), [*opus_messages(stream, size), marker])
    assert len(pcm) == pytest.approx(24_000, abs=500)  # libopus pads the last 20 ms frame
    spectrum = np.abs(np.fft.rfft(pcm[4_000:20_000]))
    assert np.argmax(spectrum) * 24_000 / 16_000 == pytest.approx(440, abs=2)
    whole = audio_decoded(KyutaiDialect(), [*opus_messages(stream, len(stream)), marker])
    np.testing.assert_array_equal(pcm, whole)


def test_opus_as_a_list_of_bytes_and_a_second_stream() -> None:
    first, second = ogg_opus(0.3), ogg_opus(0.3, 880.0)
    dialect = KyutaiDialect()
    as_list = audio_decoded(dialect, opus_messages(first, 500, as_list=True))
    np.testing.assert_array_equal(as_list, audio_decoded(KyutaiDialect(), opus_messages(first, 500)))
    assert len(audio_decoded(dialect, opus_messages(second, 500))) > 0


def test_init_drops_half_a_page() -> None:
    dialect = KyutaiDialect()
    half = opus_messages(ogg_opus(0.3)[:700], 700)
    audio_decoded(dialect, half)
    list(dialect.receive(msgpack.packb({"type": "Init"})))
    assert len(audio_decoded(dialect, opus_messages(ogg_opus(0.3), 500))) > 0


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"OpusHead\x01\x01", b"OpusHead\x11\x01", "is not an OpusHead"),
        (b"OpusHead\x01\x01", b"OpusHead\x01\x09", "9 channels"),
        (b"OpusHead", b"VorbHead", "is not an OpusHead"),
        (b"OggS", b"Oggs", "not an Ogg stream"),
    ],
)
def test_other_ogg_is_refused(old: bytes, new: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        audio_decoded(KyutaiDialect(), opus_messages(ogg_opus(0.1).replace(old, new, 1), 1_000_000))


def test_an_endless_packet_is_refused() -> None:
    page = b"OggS\0\2" + bytes(20) + b"\xff" + b"\xff" * 255 + bytes(255 * 255)
    continued = b"OggS\0\1" + page[6:]
    dialect = KyutaiDialect()
    with pytest.raises(ProtocolError, match="more than 61440 bytes"):
        audio_decoded(dialect, opus_messages(page + continued, 10_000))


# --------------------------------------------------------------------------------------------------------------- fuzz

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
NEARLY_RIGHT = st.fixed_dictionaries(
    {"type": st.sampled_from(["Init", "Audio", "OggOpus", "Marker", "Audit"])},
    optional={
        "pcm": VALUES | FLOATS,
        "data": VALUES | st.binary(max_size=60).map(lambda tail: b"OggS\0\2" + tail),
        "id": VALUES,
    },
).map(msgpack.packb)
CUT_SHORT = st.tuples(NEARLY_RIGHT, st.integers(0, 60)).map(lambda pair: pair[0][: pair[1]])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.binary(max_size=60) | NEARLY_RIGHT | CUT_SHORT | VALUES.map(msgpack.packb), max_size=4))
@example([struct.pack(">BI", 0xDD, 2**32 - 1)])
def test_any_bytes_are_commands_or_a_clean_error(messages: list[bytes]) -> None:
    dialect = KyutaiDialect()
    for message in messages:
        try:
            list(dialect.receive(message))
        except ProtocolError:
            return


def test_audio_is_converted_to_the_models_sample_rate() -> None:
    message = msgpack.packb({"type": "Audio", "pcm": np.zeros(24_000, "<f4").tobytes()})
    marker = msgpack.packb({"type": "Marker", "id": 1})
    assert len(audio_decoded(KyutaiDialect(16_000), [message, marker])) == 16_000


def test_opus_is_converted_to_the_models_sample_rate() -> None:
    marker = msgpack.packb({"type": "Marker", "id": 1})
    at_24k = audio_decoded(KyutaiDialect(), [*opus_messages(ogg_opus(1.0), 500), marker])
    at_16k = audio_decoded(KyutaiDialect(16_000), [*opus_messages(ogg_opus(1.0), 500), marker])
    assert len(at_16k) == pytest.approx(len(at_24k) * 2 / 3, abs=2)
