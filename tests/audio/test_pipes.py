"""Pipes: read once, from the first byte, in any format."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.audio.sounds import tones, write_encoded, write_wav

from slipstream import audio
from slipstream.audio import source
from slipstream.errors import AudioError


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise OSError("a pipe")


@contextmanager
def fed(path: Path, data: bytes) -> Iterator[Path]:
    """A FIFO that a thread writes data to."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    yield path
    writer.join()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("flac", "flac"),
        ("aac", "aac"),
        ("mkv", "aac"),
        ("ts", "aac"),
        ("mp4", "aac"),
        ("wv", "wavpack"),
    ],
)
def test_a_fifo_is_decoded_like_its_file(tmp_path: Path, suffix: str, codec: str) -> None:
    file = write_encoded(tmp_path / f"talk.{suffix}", codec, tones(3.0, 44_100), 44_100)
    with fed(tmp_path / "pipe", file.read_bytes()) as pipe:
        np.testing.assert_array_equal(audio.load(pipe), audio.load(file))


def test_audio_is_decoded_before_the_pipe_ends() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb", buffering=0) as writer:
        pieces = audio.decode(reader, raw=audio.RawFormat("pcm_s16le", audio.SAMPLE_RATE))
        writer.write(bytes(2000))
        assert next(pieces).shape == (1, 1000)
        writer.close()


def test_the_error_of_a_pipe_too_long_to_copy_names_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "SPOOL_BYTES", 10_000)
    path = write_encoded(tmp_path / "film.mp4", "aac", tones(10.0, 48_000), 48_000)
    with pytest.raises(AudioError, match=r"a format that must seek: save it to a file first"):
        audio.load(Pipe(path.read_bytes()))


def test_an_empty_pipe_is_a_clear_error() -> None:
    with pytest.raises(AudioError, match="the stream: is empty"):
        audio.load(Pipe())


def test_wav_files_one_after_the_other_in_a_pipe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_wav(tmp_path / "a.wav", tones(0.1, 16_000), 16_000).read_bytes()
    for cut in (1, 7, 50, 65_536):  # a header may arrive in pieces

        class Slow(Pipe):
            def read1(self, size: int = -1, cut: int = cut) -> bytes:
                return super().read1(min(size, cut))

        with caplog.at_level(logging.WARNING, "slipstream"):
            assert len(audio.load(Slow(data + data))) == audio.SAMPLE_RATE // 5
        assert "holds 2 WAV files" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_probing_does_not_read_the_audio(tmp_path: Path) -> None:
    data = write_wav(tmp_path / "a.wav", tones(1.0, 16_000), 16_000).read_bytes()
    with fed(tmp_path / "pipe", data) as pipe:
        with pytest.raises(AudioError, match="is a pipe"):
            audio.probe(pipe)
        assert len(audio.load(pipe)) == audio.SAMPLE_RATE
    file = io.BytesIO(data)
    assert audio.probe(file).duration == 1.0
    assert file.tell() == 0


def test_a_failing_disk_is_a_clear_error(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        name = "broken.wav"

        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100_000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    data = write_wav(tmp_path / "a.wav", tones(10.0, 16_000), 16_000).read_bytes()
    with pytest.raises(AudioError, match=r"broken.wav: cannot be read: Input/output error"):
        audio.load(Broken(data))
