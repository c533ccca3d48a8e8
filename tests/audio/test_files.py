"""Files and pipes: every way in gives the same samples, and broken input gives a clear error."""

from __future__ import annotations

import codecs
import io
import logging
import os
import tempfile
import threading
import tracemalloc
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from tests.audio.sounds import add_pictures, mux_pictures, tones, write_encoded, write_float_wav, write_wav

from slipstream import audio
from slipstream.audio import Resampler
from slipstream.audio.container import _decoded_packets
from slipstream.errors import AudioError


@pytest.mark.parametrize(
    ("name", "codec", "rate", "video"),
    [
        ("talk.mp3", "libmp3lame", 44_100, ""),
        ("talk.m4a", "aac", 44_100, ""),
        ("talk.opus", "libopus", 48_000, ""),
        ("talk.webm", "libopus", 48_000, ""),
        ("talk.flac", "flac", 16_000, ""),
        ("talk.aac", "aac", 44_100, ""),
        ("telephone.wav", "pcm_mulaw", 8_000, ""),
        ("telephone.al.wav", "pcm_alaw", 8_000, ""),
        ("bytes.wav", "pcm_u8", 8_000, ""),
        ("deep.wav", "pcm_s24le", 48_000, ""),
        ("film.mp4", "aac", 48_000, "mpeg4"),
    ],
)
def test_decodes_formats_that_ffmpeg_reads(tmp_path: Path, name: str, codec: str, rate: int, video: str) -> None:
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


def test_a_truncated_mp3_is_read_to_its_end_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_encoded(tmp_path / "talk.mp3", "libmp3lame", tones(4.0, 44_100), 44_100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with caplog.at_level(logging.WARNING, "slipstream"):
        samples = audio.load(path)

    assert len(samples) == pytest.approx(2.0 * audio.SAMPLE_RATE, rel=0.1)
    assert "header states 4.0 s" in caplog.text


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
    assert "are replaced by silence" in caplog.text


def test_a_gap_in_the_timestamps_is_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_encoded(tmp_path / "call.webm", "libopus", tones(2.0, 48_000), 48_000, gap=(1.0, 0.5))
    with caplog.at_level(logging.WARNING, "slipstream"):
        got = audio.load(path)
    assert len(got) == pytest.approx(2.5 * audio.SAMPLE_RATE, abs=0.02 * audio.SAMPLE_RATE)
    assert np.abs(got[26_000:34_000]).max() < 0.01 < 0.4 < np.abs(got[38_000:]).max()
    assert "0.5 s of audio are missing" in caplog.text


def test_a_limit_on_the_sum_of_gaps(tmp_path: Path) -> None:
    path = write_encoded(tmp_path / "call.webm", "libopus", tones(2.0, 48_000), 48_000, gap=(1.0, 60.0))
    assert sum(piece.shape[1] for piece in audio.decode(path, max_gap_seconds=61.0)) > 61 * audio.SAMPLE_RATE
    with pytest.raises(AudioError, match=r"call.webm: the gaps between its timestamps add up to more than 59 s"):
        list(audio.decode(path, max_gap_seconds=59.0))


def test_a_packet_of_minutes_is_decoded_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "one_packet.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 8_000 * 120), 3_276, np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8_000, 0
        container.mux(stream.encode(frame))
    pieces = [piece.shape[1] for piece in audio.decode(path)]
    assert sum(pieces) == 120 * audio.SAMPLE_RATE
    assert max(pieces) <= 1.1 * audio.SAMPLE_RATE


def test_a_stream_that_appears_late_ends_the_file_without_an_error() -> None:
    """PyAV raises IndexError at the end of damaged MPEG-TS, when it flushes a stream that was not there at first."""

    class Container:
        def demux(self, stream: object) -> Any:
            yield SimpleNamespace(size=1, decode=lambda: ["frame"])
            raise IndexError("list index out of range")

    ((_, frames),) = _decoded_packets(Container(), object(), "a.ts")  # type: ignore[arg-type]
    assert frames == ["frame"]


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
    for _ in range(2):  # FFmpeg's log leaves out repeated messages
        with pytest.raises(AudioError, match=message) as caught:
            audio.load(path)
        assert str(path) in str(caught.value)


def test_a_file_object_without_content_is_empty() -> None:
    with pytest.raises(AudioError, match="it is empty"):
        audio.load(io.BytesIO())


def test_a_script_cannot_open_other_files(tmp_path: Path) -> None:
    write_wav(tmp_path / "secret.wav", tones(0.2, 16_000), 16_000)
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n")
    with pytest.raises(AudioError, match="not audio"):
        audio.load(tmp_path / "list.ffconcat")


def two_tracks(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("aac", rate=24_000, layout="mono") for _ in range(2)]
        streams[0].metadata["language"], streams[1].metadata["language"] = "eng", "fra"
        for n, stream in enumerate(streams, 1):
            samples = np.full((1, 24_000), 0.2 * n, np.float32)
            samples[0] *= np.sin(np.arange(24_000) * 0.1)
            whole = av.AudioFrame.from_ndarray(samples, "flt", "mono")
            whole.sample_rate = 24_000
            for frame in av.AudioResampler("fltp", "mono", 24_000, frame_size=1024).resample(whole):
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def test_a_track_is_chosen_by_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = two_tracks(tmp_path / "film.mkv")
    with caplog.at_level(logging.WARNING, "slipstream"):
        peaks = [np.concatenate(list(audio.decode(path, track=track)), axis=1).max() for track in (1, 2)]
        assert not caplog.text
        assert audio.load(path).max() == peaks[0]
    assert peaks == [pytest.approx(0.2, abs=0.05), pytest.approx(0.4, abs=0.1)]
    assert "film.mkv: has 2 audio tracks: 1 (eng, aac, mono) or 2 (fra, aac, mono); track 1 is read" in caplog.text
    with pytest.raises(AudioError, match=r"has no audio track 3: choose 1 \(eng, aac, mono\) or 2"):
        next(audio.decode(path, track=3))
    with pytest.raises(AudioError, match="raw audio has no tracks"):
        next(audio.decode(path, raw=audio.RawFormat("mulaw", 8_000), track=1))


@pytest.mark.parametrize("read", [lambda source: list(audio.decode(source)), audio.probe])
def test_sources_that_cannot_be_read_as_bytes(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, tones(0.1, 24_000), 24_000)
    with (
        tempfile.NamedTemporaryFile("w+") as text,
        codecs.open(str(path), encoding="latin-1") as decoded,
        path.open() as plain,
    ):
        for source in (text, decoded, plain):
            with pytest.raises(AudioError, match="open it in mode 'rb'"):
                read(source)
    closed = path.open("rb")
    closed.close()
    with pytest.raises(AudioError, match="closed file: expected a path or an open binary file"):
        read(closed)
    with pytest.raises(AudioError, match=r"null (byte|character)"):
        read("a\0b")
    with pytest.raises(AudioError, match="File name too long"):
        read("a" * 5000)
