"""Audio: every way in gives the same samples, however it is cut, and broken input a sentence one can act on."""

from __future__ import annotations

import io
import itertools
import logging
import os
import struct
import sys
import threading
import tracemalloc
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream import audio
from slipstream.audio import Framer, PcmDecoder, RawFormat, Resampler
from slipstream.errors import AudioError

RATES = [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000]


def tones(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """A different tone on each channel, `[C, S]`."""
    time = np.arange(round(seconds * rate)) / rate
    frequencies = 440 * (1 + np.arange(channels))[:, None]
    return (0.5 * np.sin(2 * np.pi * frequencies * time)).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples.T * 32767).astype("<i2").tobytes())
    return path


def write_float_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    data = samples.astype("<f4").tobytes()
    fmt = struct.pack("<HHIIHH", 3, 1, rate, 4 * rate, 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    return path


def write_encoded(
    path: Path, codec: str, samples: np.ndarray, rate: int, video: bool = False, gap: tuple[float, float] = (0, 0)
) -> Path:
    """Encode samples; with `video` beside a picture; with `gap` timestamps jump by gap[1] at second gap[0]."""
    with av.open(str(path), "w") as container:
        pictures = add_pictures(container) if video else None
        stream = container.add_stream(codec, rate=rate, layout="mono" if len(samples) == 1 else "stereo")
        if pictures:
            mux_pictures(container, pictures)
        packed = np.ascontiguousarray((samples.T * 32767).astype(np.int16).reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=stream.layout.name)
        frame.sample_rate = rate
        fifo = av.AudioFifo()
        for converted in av.AudioResampler(format=stream.format, layout=stream.layout, rate=rate).resample(frame):
            fifo.write(converted)
        position = 0
        for piece in fifo.read_many(stream.codec_context.frame_size or 1024, partial=True):
            piece.pts = position + round(gap[1] * rate) * (position >= gap[0] * rate)
            position += piece.samples
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def add_pictures(container: Any) -> Any:
    stream = container.add_stream("mpeg4", rate=25)
    stream.width = stream.height = 32
    stream.pix_fmt = "yuv420p"
    return stream


def mux_pictures(container: Any, stream: Any) -> None:
    for n in range(25):
        picture = av.VideoFrame(32, 32, "yuv420p")
        picture.pts = n
        container.mux(stream.encode(picture))
    container.mux(stream.encode(None))


# -------------------------------------------------------------------------------------------------------------- decode


@pytest.mark.parametrize(
    ("name", "codec", "rate", "video"),
    [
        ("talk.mp3", "libmp3lame", 44_100, False),
        ("talk.m4a", "aac", 44_100, False),
        ("talk.opus", "libopus", 48_000, False),
        ("talk.webm", "libopus", 48_000, False),
        ("talk.flac", "flac", 16_000, False),
        ("talk.aac", "aac", 44_100, False),
        ("telephone.wav", "pcm_mulaw", 8_000, False),
        ("telephone.al.wav", "pcm_alaw", 8_000, False),
        ("bytes.wav", "pcm_u8", 8_000, False),
        ("deep.wav", "pcm_s24le", 48_000, False),
        ("film.mp4", "aac", 48_000, True),
    ],
)
def test_decodes_what_ffmpeg_reads(tmp_path: Path, name: str, codec: str, rate: int, video: bool) -> None:
    path = write_encoded(tmp_path / name, codec, tones(2.0, rate), rate, video)

    samples = audio.load(path)

    assert len(samples) == pytest.approx(2.0 * audio.SAMPLE_RATE, abs=0.05 * audio.SAMPLE_RATE)
    middle = samples[12_000:36_000]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == pytest.approx(440, abs=1)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.03)


def test_probe_reads_the_header(tmp_path: Path) -> None:
    info = audio.probe(write_encoded(tmp_path / "talk.flac", "flac", tones(1.5, 16_000, 2), 16_000))
    assert info == audio.AudioInfo(duration=1.5, sample_rate=16_000, channels=2, codec="flac")


def test_channels_mixed_or_separate(tmp_path: Path) -> None:
    samples = tones(0.5, 24_000, 2)
    path = write_wav(tmp_path / "two.wav", samples, 24_000)

    separate = np.concatenate(list(audio.decode(path, channels="separate")), axis=1)
    mixed = np.concatenate(list(audio.decode(path)), axis=1)

    np.testing.assert_allclose(separate, samples, atol=1e-4)
    np.testing.assert_allclose(mixed, samples.mean(axis=0, keepdims=True), atol=1e-4)


def test_pieces_of_a_file_are_the_whole_array_resampled(tmp_path: Path) -> None:
    samples = tones(1.0, 44_100)
    path = write_float_wav(tmp_path / "a.wav", samples, 44_100)
    resampler = Resampler(44_100)
    whole = np.concatenate([resampler.push(samples), resampler.flush()], axis=1)
    np.testing.assert_array_equal(audio.load(path), whole[0])


def test_a_file_object_that_cannot_seek(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tones(0.5, 16_000), 16_000)
    read_end, write_end = os.pipe()

    def feed() -> None:
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(path.read_bytes())

    threading.Thread(target=feed).start()
    with os.fdopen(read_end, "rb") as pipe:
        np.testing.assert_array_equal(audio.load(pipe), audio.load(path))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(bytes(2 * 8_000 * 300))
    tracemalloc.start()
    try:
        total = sum(piece.shape[1] for piece in audio.decode(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 300 * audio.SAMPLE_RATE  # 28.8 MB as float32
    assert peak < 2_000_000


# ------------------------------------------------------------------------------------------------------- broken input


def test_truncated_mp3_gives_what_is_there_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_encoded(tmp_path / "talk.mp3", "libmp3lame", tones(4.0, 44_100), 44_100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with caplog.at_level(logging.WARNING, "slipstream"):
        samples = audio.load(path)

    assert len(samples) == pytest.approx(2.0 * audio.SAMPLE_RATE, rel=0.1)
    assert "header promises 4.0 s" in caplog.text


def test_words_after_a_damaged_stretch_keep_their_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = tones(4.0, 16_000)
    samples[:, 48_000:] *= 2
    path = write_encoded(tmp_path / "talk.flac", "flac", samples, 16_000)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8000] = bytes(8000)
    path.write_bytes(data)

    with caplog.at_level(logging.WARNING, "slipstream"):
        got = audio.load(path)

    assert len(got) == 4 * audio.SAMPLE_RATE
    assert np.abs(got[69_600:71_800]).max() < 0.6 < 0.9 < np.abs(got[72_200:74_400]).max()
    assert "silence stands for them" in caplog.text


def test_a_gap_in_the_timestamps_is_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_encoded(tmp_path / "call.webm", "libopus", tones(2.0, 48_000), 48_000, gap=(1.0, 0.5))
    with caplog.at_level(logging.WARNING, "slipstream"):
        got = audio.load(path)
    assert len(got) == pytest.approx(2.5 * audio.SAMPLE_RATE, abs=0.02 * audio.SAMPLE_RATE)
    assert np.abs(got[26_000:34_000]).max() < 0.01 < 0.4 < np.abs(got[38_000:]).max()
    assert "0.5 s of audio are missing" in caplog.text


def broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    sound = write_wav(folder / "sound.wav", tones(0.2, 16_000), 16_000)
    zero_hertz = bytearray(sound.read_bytes())
    zero_hertz[24:28] = bytes(4)
    nan = tones(1.0, 24_000)
    nan[0, 12_000] = np.nan
    files = {
        "missing": (folder / "missing.wav", "no such file"),
        "folder": (folder, "is a folder"),
        "empty": (folder / "empty.mp3", "the file is empty"),
        "text": (folder / "letter.mp3", "not audio that FFmpeg can read"),
        "header only": (folder / "header.wav", "holds no audio samples"),
        "zero hertz": (folder / "zero.wav", "Invalid sample rate: 0"),
        "no audio track": (folder / "silent.mp4", "no audio track"),
        "not a number": (write_float_wav(folder / "nan.wav", nan, 24_000), "sample at 0.500 s is not a finite number"),
    }
    files["empty"][0].write_bytes(b"")
    files["text"][0].write_bytes(b"Dear Sir or Madam, " * 100)
    files["header only"][0].write_bytes(sound.read_bytes()[:44])
    files["zero hertz"][0].write_bytes(zero_hertz)
    with av.open(str(files["no audio track"][0]), "w") as container:
        mux_pictures(container, add_pictures(container))
    return files


@pytest.mark.parametrize(
    "case", ["missing", "folder", "empty", "text", "header only", "zero hertz", "no audio track", "not a number"]
)
def test_broken_input_is_a_clear_error(tmp_path: Path, case: str) -> None:
    path, message = broken_files(tmp_path)[case]
    for _ in range(2):  # the second time FFmpeg would keep from its log what it has just said
        with pytest.raises(AudioError, match=message) as caught:
            audio.load(path)
        assert str(path) in str(caught.value)


def test_a_script_cannot_open_other_files(tmp_path: Path) -> None:
    write_wav(tmp_path / "secret.wav", tones(0.2, 16_000), 16_000)
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n")
    with pytest.raises(AudioError, match="not audio"):
        audio.load(tmp_path / "list.ffconcat")


def test_a_format_that_needs_to_seek_says_so_in_a_pipe(tmp_path: Path) -> None:
    path = write_encoded(tmp_path / "film.mp4", "aac", tones(10.0, 48_000), 48_000)

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: Any) -> int:
            raise OSError("a pipe")

    with pytest.raises(AudioError, match="cannot be read from a pipe"):
        audio.load(Pipe(path.read_bytes()))


# ------------------------------------------------------------------------------------------------------------- raw PCM


@pytest.mark.parametrize("encoding", ["pcm_s16le", "pcm_s24le", "pcm_f32le", "mulaw", "alaw"])
def test_raw_pcm_equals_ffmpegs_decoder(encoding: Any) -> None:
    codec = av.CodecContext.create({"mulaw": "pcm_mulaw", "alaw": "pcm_alaw"}.get(encoding, encoding), "r")
    codec.sample_rate, codec.layout = 8_000, "mono"
    format = RawFormat(encoding, 8_000)
    numbers = np.random.default_rng(0).permutation(256).astype(np.uint8)
    if encoding == "pcm_f32le":
        data = (numbers.astype("<f4") / 256).tobytes()
    else:
        data = numbers.repeat(1 if format.sample_bytes == 1 else 3)[: 256 * format.sample_bytes].tobytes()
    (frame,) = codec.decode(av.Packet(data))
    array = frame.to_ndarray()
    full_scale = 1.0 if array.dtype == np.float32 else -float(np.iinfo(array.dtype).min)

    np.testing.assert_array_equal(PcmDecoder(format).push(data), (array / full_scale).astype(np.float32))


@given(
    cuts=st.lists(st.integers(0, 50), max_size=20),
    encoding=st.sampled_from(["pcm_s16le", "pcm_s24le", "pcm_f32le", "mulaw"]),
    channels=st.integers(1, 3),
)
def test_raw_pcm_may_be_cut_anywhere(cuts: list[int], encoding: Any, channels: int) -> None:
    format = RawFormat(encoding, 16_000, channels)
    values = np.random.default_rng(1).uniform(0, 1, 50 * channels).astype("<f4")
    data = values.tobytes() if encoding == "pcm_f32le" else values.tobytes()[: 50 * channels * format.sample_bytes]
    whole, pieces = PcmDecoder(format), PcmDecoder(format)
    ends = [*np.minimum(np.cumsum(cuts), len(data)).astype(int).tolist(), len(data)]

    got = [pieces.push(data[start:end]) for start, end in itertools.pairwise([0, *ends])]

    np.testing.assert_array_equal(np.concatenate(got, axis=1), whole.push(data))
    assert pieces.buffered == 0


def test_raw_file_with_declared_format(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = tones(0.5, 24_000, 2)
    path = tmp_path / "a.raw"
    path.write_bytes((samples.T * 32767).astype("<i2").tobytes() + b"\0")
    with caplog.at_level(logging.WARNING, "slipstream"):
        pieces = list(audio.decode(path, raw=RawFormat("pcm_s16le", 24_000, 2), channels="separate"))
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), samples, atol=1e-4)
    assert "middle of a sample" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": "pcm_s8"}, "choose one of pcm_s16le, pcm_s24le"),
        ({"sample_rate": 0}, "0 Hz"),
        ({"channels": 0}, "at least one"),
    ],
)
def test_impossible_raw_format(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AudioError, match=message):
        RawFormat(**{"encoding": "pcm_s16le", "sample_rate": 8_000, **fields})


# -------------------------------------------------------------------------------------------------------------- arrays


def test_arrays_become_float_channels_first() -> None:
    np.testing.assert_array_equal(audio.to_float(np.array([-32768, 16384], np.int16)), [[-1.0, 0.5]])
    np.testing.assert_array_equal(audio.to_float(np.array([[0.5], [-0.5]])), [[0.5], [-0.5]])
    assert audio.to_float(np.zeros(3)).dtype == np.float32
    assert audio.to_float(np.zeros(0)).shape == (1, 0)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 2, 2)), "expected .samples. or .channels, samples."),
        (np.zeros((48_000, 2)), "pass its transpose"),
        (np.array([0.0, np.inf]), "index 1 is not a finite number"),
        (np.array([0.0, 20_000.0]), "divide 16-bit values by 32768"),
        (np.array(["a"]), "expected floats"),
        (np.zeros(4, np.uint8), "expected floats"),
    ],
)
def test_arrays_that_are_not_audio(samples: np.ndarray, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        audio.to_float(samples)


# ------------------------------------------------------------------------------------------------ Resampler and Framer


@given(rate=st.sampled_from(RATES), channels=st.integers(1, 2), seed=st.integers(0, 2**32 - 1))
def test_resampled_stream_does_not_depend_on_its_chunks(rate: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = rng.uniform(-1, 1, (channels, int(rng.integers(1, 3 * rate // 10)))).astype(np.float32)
    cuts = np.sort(rng.integers(0, samples.shape[1] + 1, int(rng.integers(0, 30))))
    whole, stream = Resampler(rate, channels=channels), Resampler(rate, channels=channels)

    pieces = [stream.push(chunk) for chunk in np.split(samples, cuts, axis=1)]
    got = np.concatenate([*pieces, stream.flush()], axis=1)

    np.testing.assert_array_equal(got, np.concatenate([whole.push(samples), whole.flush()], axis=1))
    assert got.shape[1] == pytest.approx(samples.shape[1] * audio.SAMPLE_RATE / rate, abs=1)


@pytest.mark.parametrize("rate", RATES)
def test_resampling_keeps_the_tone_and_its_phase(rate: int) -> None:
    resampler = Resampler(rate)
    got = np.concatenate([resampler.push(tones(1.0, rate)), resampler.flush()], axis=1)
    np.testing.assert_allclose(got[:, 2400:-2400], tones(1.0, 24_000)[:, 2400:-2400], atol=1e-3)


def test_a_live_stream_is_not_held_back() -> None:
    resampler, received = Resampler(8_000), 0
    for block in np.split(tones(2.0, 8_000), 100, axis=1):
        received += resampler.push(block).shape[1]
    assert 2.0 - received / audio.SAMPLE_RATE < 0.1


@pytest.mark.parametrize("rate", [0, -8_000, 10**9])
def test_impossible_rate(rate: int) -> None:
    with pytest.raises(AudioError, match="between 1000 and 768000"):
        Resampler(rate)


@given(chunks=st.lists(st.integers(0, 40), max_size=20), frame_samples=st.integers(1, 17))
def test_frames_are_the_stream_and_then_zeros(chunks: list[int], frame_samples: int) -> None:
    stream = np.arange(1, sum(chunks) + 1, dtype=np.float32)
    framer = Framer(frame_samples)

    frames = [framer.push(chunk) for chunk in np.split(stream, np.cumsum(chunks))]
    waiting = framer.buffered
    last, real = framer.flush()

    assert all(frame.shape[1] == frame_samples for frame in frames)
    assert real == waiting == len(stream) % frame_samples
    assert len(last) == (1 if real else 0)
    out = np.concatenate([*frames, last]).ravel()
    np.testing.assert_array_equal(out[: len(stream)], stream)
    assert not out[len(stream) :].any()
    assert framer.buffered == 0


def test_framer_keeps_its_own_copy() -> None:
    framer, block = Framer(4), np.ones(3, np.float32)
    framer.push(block)
    block[:] = 9
    np.testing.assert_array_equal(framer.push(np.ones(1, np.float32)), np.ones((1, 4)))


# ---------------------------------------------------------------------------------------------------------- microphone


class FakePortAudioError(Exception):
    pass


def fake_sounddevice(devices: list[dict[str, Any]]) -> SimpleNamespace:
    class InputStream:
        def __init__(self, samplerate: int, blocksize: int, callback: Any, **_: Any) -> None:
            self.blocks = np.split(tones(1.0, samplerate).T, samplerate // blocksize)
            self.callback = callback

        def __enter__(self) -> None:
            for block in self.blocks:
                self.callback(block, len(block), None, SimpleNamespace(input_overflow=False))

        def __exit__(self, *_: object) -> None:
            pass

    def query_devices(device: Any = None, kind: str | None = None) -> Any:
        if kind is None:
            return devices
        if not devices:
            raise FakePortAudioError("Error querying device -1")
        return devices[0]

    return SimpleNamespace(
        default=SimpleNamespace(device=(0, 1)),
        query_devices=query_devices,
        InputStream=InputStream,
        PortAudioError=FakePortAudioError,
    )


MICROPHONE = {"index": 0, "name": "Built-in", "max_input_channels": 2, "default_samplerate": 48_000.0}
LOUDSPEAKER = {"index": 1, "name": "Speaker", "max_input_channels": 0, "default_samplerate": 48_000.0}


def test_microphones_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice([MICROPHONE, LOUDSPEAKER]))
    assert audio.input_devices() == [audio.InputDevice(0, "Built-in", 2, 48_000, is_default=True)]


def test_microphone_is_a_stream_at_the_models_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice([MICROPHONE]))
    recording = audio.microphone()
    samples = np.concatenate([next(recording) for _ in range(25)], axis=1)
    recording.close()
    np.testing.assert_allclose(samples[:, 2400:12_000], tones(1.0, 24_000)[:, 2400:12_000], atol=1e-3)


def test_no_microphone_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice([]))
    with pytest.raises(AudioError, match="no microphone"):
        next(audio.microphone())


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(AudioError, match=r"slipstream-stt\[mic\]"):
        audio.input_devices()


def test_64_bit_samples_do_not_say_their_full_scale() -> None:
    with pytest.raises(AudioError, match="pass 16-bit samples as int16"):
        audio.to_float(np.array([1000, -2000]))
    assert audio.to_float(np.array([16384], np.int16)).tolist() == [[0.5]]
