"""A file that was cut off is read to its end, with a warning."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.audio.sounds import tones, write_encoded, write_wav

from slipstream.audio import decode
from slipstream.audio.truncation import ends_ogg, wav_seconds

RATE = 48_000
CODECS = {
    "aiff": "pcm_s16be",
    "flac": "flac",
    "mp3": "libmp3lame",
    "ogg": "libopus",
    "webm": "libopus",
}


def encoded(folder: Path, suffix: str) -> bytes:
    path = folder / f"talk.{suffix}"
    if suffix == "wav":
        return write_wav(path, tones(6.0, RATE), RATE).read_bytes()
    return write_encoded(path, CODECS[suffix], tones(6.0, RATE), RATE).read_bytes()


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = 0) -> int:
        raise OSError("not seekable")


# Of an MP3 file in a pipe, FFmpeg does not read the length.
@pytest.mark.parametrize(
    ("suffix", "kind"),
    [*((name, io.BytesIO) for name in ("wav", *CODECS)), *((name, Pipe) for name in ("wav", *CODECS) if name != "mp3")],
)
def test_a_file_that_is_cut_off_is_read_with_a_warning(tmp_path: Path, suffix: str, kind: type[io.BytesIO]) -> None:
    data = encoded(tmp_path, suffix)
    warnings: list[str] = []
    whole = np.concatenate(list(decode(kind(data), warn=warnings.append)), axis=1)
    assert (abs(whole.shape[1] - 6 * 24_000) < 1500, warnings) == (True, [])
    half = np.concatenate(list(decode(kind(data[: len(data) // 2]), warn=warnings.append)), axis=1)
    assert 1.5 * 24_000 < half.shape[1] < 3.5 * 24_000
    sign = "not marked as the end" if suffix == "ogg" else "its header states 6.0 s of audio, but only "
    assert any(sign in warning for warning in warnings)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_header_that_was_written_to_a_pipe_states_no_length(tmp_path: Path, size: int) -> None:
    data = bytearray(encoded(tmp_path, "wav"))
    data[40:44] = struct.pack("<I", size)
    warnings: list[str] = []
    assert sum(piece.shape[1] for piece in decode(io.BytesIO(data), warn=warnings.append)) == 6 * 24_000
    assert (warnings, wav_seconds(bytes(data))) == ([], None)


@pytest.mark.parametrize("head", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEdata\xff\0\0\0", b"OggS"])
def test_a_head_without_a_length(head: bytes) -> None:
    assert wav_seconds(head) is None


def test_the_length_follows_other_chunks(tmp_path: Path) -> None:
    data = encoded(tmp_path, "wav")
    assert wav_seconds(data) == 6.0
    assert wav_seconds(data[:12] + b"LIST\x03\0\0\0abc\0" + data[12:]) == 6.0


def test_an_ogg_page_ends_the_stream_if_it_is_marked_and_complete(tmp_path: Path) -> None:
    data = encoded(tmp_path, "ogg")
    assert ends_ogg(data)
    assert ends_ogg(data[data.rfind(b"OggS") :])
    assert not ends_ogg(data[:-1])
    assert not ends_ogg(data[: data.rfind(b"OggS")])
    assert not ends_ogg(b"")
    assert not ends_ogg(b"OggS")
