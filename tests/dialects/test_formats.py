"""Live audio in any format: the samples equal those of the file, however the bytes are cut."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.audio import Channels, RawFormat, decode
from slipstream.dialects import formats
from slipstream.dialects.formats import Container, LiveDecoder
from slipstream.dialects.protocol import ProtocolError
from slipstream.testing import noise_and_tones

RATE = 24_000


def encoded(format: str, codec: str, rate: int, channels: int = 1, seconds: float = 2.0) -> bytes:
    file, layout = io.BytesIO(), "mono" if channels == 1 else "stereo"
    left_S = noise_and_tones(seconds, sample_rate=rate)
    audio_CS = np.stack([left_S, left_S[::-1] / 2])[:channels]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio_CS), format="fltp", layout=layout)
    frame.rate = rate
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        size = stream.codec_context.frame_size or 960
        resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate, frame_size=size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return file.getvalue()


def live(decoder: LiveDecoder, pieces: Iterable[bytes]) -> np.ndarray:
    def samples() -> Iterator[np.ndarray]:
        for piece in pieces:
            yield from decoder.push(piece)
        yield from decoder.flush(last=True)

    arrays = [array for array in samples() if array.shape[1]]
    return np.concatenate(arrays, axis=1)


def cut(data: bytes, seed: int) -> list[bytes]:
    borders = [0, *sorted(np.random.default_rng(seed).integers(0, len(data), 40)), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(borders)]


FILES = {
    "wav": ("wav", "pcm_s16le", 16_000),
    "wav-24": ("wav", "pcm_s24le", 44_100),
    "wav-float": ("wav", "pcm_f32le", 8_000),
    "wav-mulaw": ("wav", "pcm_mulaw", 8_000),
    "flac": ("flac", "flac", 16_000),
    "mp3": ("mp3", "libmp3lame", 16_000),
    "aac": ("adts", "aac", 16_000),
    "webm": ("webm", "libopus", 48_000),
    "matroska": ("matroska", "libopus", 48_000),
    "ogg-opus": ("ogg", "libopus", 48_000),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_container_is_decoded_live_as_its_file_is(name: str, channels: int) -> None:
    data = encoded(*FILES[name], channels=channels)
    file_S = np.concatenate([piece[0] for piece in decode(io.BytesIO(data), sample_rate=RATE)])
    first_CS = live(Container(RATE), [data])
    assert first_CS.shape[0] == 1
    for seed in range(3):
        np.testing.assert_allclose(live(Container(RATE), cut(data, seed)), first_CS, atol=1e-6)
    # Encoders of lossy formats add silence at the start, which the header of a file gives.
    shift = first_CS.shape[1] - len(file_S)
    assert 0 <= shift < RATE // 8
    error = min(
        np.abs(first_CS[0, start : start + len(file_S) - 2400] - file_S[: len(file_S) - 2400]).mean()
        for start in (0, shift, *range(shift))
    )
    assert error < 0.05
    if shift == 0:
        np.testing.assert_allclose(first_CS[0], file_S, atol=1e-4)


@pytest.mark.parametrize("channels", ["mix", "separate"])
@pytest.mark.parametrize("name", ["wav", "flac", "webm"])
def test_a_flush_within_a_container_changes_nothing_after_it(name: str, channels: Channels) -> None:
    data = encoded(*FILES[name], channels=2)
    flushed, half = Container(RATE, channels), len(data) // 2
    before = [*flushed.push(data[:half]), *flushed.flush(last=False)]
    after = [*flushed.push(data[half:]), *flushed.flush(last=True)]
    got_CS = np.concatenate([piece_CS for piece_CS in (*before, *after) if piece_CS.shape[1]], axis=1)
    expected_CS = live(Container(RATE, channels), [data])
    begin = sum(piece_CS.shape[1] for piece_CS in before)
    assert got_CS.shape == expected_CS.shape
    np.testing.assert_array_equal(got_CS[:, begin:], expected_CS[:, begin:])


def test_channels_stay_separate() -> None:
    both_CS = live(Container(RATE, "separate"), cut(encoded("flac", "flac", 24_000, channels=2), 1))
    left_S = noise_and_tones(2.0, sample_rate=RATE)
    np.testing.assert_allclose(both_CS, np.stack([left_S, left_S[::-1] / 2]), atol=1e-3)


def test_opus_packets_are_decoded_one_per_message() -> None:
    data = encoded("ogg", "libopus", 48_000)
    with av.open(io.BytesIO(data)) as container:
        packets = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    samples_CS = live(formats.packets("opus", RATE), packets)
    assert abs(samples_CS.shape[1] - 2 * RATE) < RATE // 10
    assert np.abs(samples_CS).mean() > 0.05


@pytest.mark.parametrize(("codec", "name", "rate"), [("amr_nb", "amrnb", 8_000)])
def test_amr_with_or_without_its_header(codec: str, name: str, rate: int) -> None:
    if codec not in av.codecs_available and "libopencore_amrnb" not in av.codecs_available:
        pytest.skip("this FFmpeg has no AMR encoder")
    data = encoded("amr", codec, rate)
    contained_CS = live(Container(RATE), cut(data, 1))
    assert abs(contained_CS.shape[1] - 2 * RATE) < RATE // 10
    for begin in (data, data.removeprefix(b"#!AMR\n")):
        np.testing.assert_array_equal(live(formats.elementary(name, RATE), cut(begin, 2)), contained_CS)


def test_raw_samples_may_be_cut_within_a_sample() -> None:
    audio_S = noise_and_tones(1.0, sample_rate=16_000)
    data = (audio_S * 32767).astype("<i2").tobytes()
    format = RawFormat("pcm_s16le", 16_000)
    whole = live(formats.PcmStream(format, RATE), [data])
    np.testing.assert_allclose(live(formats.PcmStream(format, RATE), cut(data, 3)), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello, this is no audio", "begins like no known container"),
        (b"\0\0\0\x18ftypmp42aaaaaaaa", "MP4 cannot be decoded live"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "its format must come before its samples"),
        (b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\0\0\0\0\x01\0\x08\0", "WAV of format 1 with 8 bits"),
        (b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\xff", "its format has 4294967295 bytes"),
        (b"OggS\0\0\0\0\0\0\0\0" + b"x" * 400, ""),
        (b"\x1aE\xdf\xa3\xff" + b"x" * 20, "has no size"),
        (b"\x1aE\xdf\xa3\x80\xa3\x10\x10\x00\x00" + b"x" * 20, "bytes: at most"),
        (b"\x1aE\xdf\xa3\x80\xa3\x85\x81\x00\x00\x80\x00" + b"x" * 20, "its tracks must come before its blocks"),
        (b"\x1aE\xdf\xa3\x80\x16\x54\xae\x6b\x80" + b"x" * 20, "no audio track"),
        (b"\x1aE\xdf\xa3\x80" + b"\0" * 20, "begins with an invalid byte"),
    ],
)
def test_errors_state_why_a_container_cannot_be_read(data: bytes, reason: str) -> None:
    if reason:
        with pytest.raises(ProtocolError, match=reason):
            list(Container(RATE).push(data))
    else:
        list(Container(RATE).push(data))


def test_packets_that_are_not_of_the_codec_end_the_stream() -> None:
    decoder = formats.elementary("mp3", RATE)
    with pytest.raises(ProtocolError, match="not mp3"):
        list(decoder.push((b"\xff\xfb\x90\x00" + b"\xff" * 413) * 100))


HEADS = [b"RIFF\0\0\0\0WAVE", b"OggS", b"\x1aE\xdf\xa3", b"fLaC", b"ID3\x04", b"\xff\xf1", b"#!AMR\n", b"#!AMR-WB\n"]


@given(st.sampled_from(HEADS), st.lists(st.binary(max_size=200), max_size=10))
def test_any_bytes_give_audio_or_a_protocol_error(head: bytes, pieces: list[bytes]) -> None:
    decoder = Container(RATE)
    try:
        for piece in [head, *pieces]:
            list(decoder.push(piece))
        list(decoder.flush(last=True))
    except ProtocolError:
        pass
