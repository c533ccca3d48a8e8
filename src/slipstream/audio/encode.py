"""Encode audio as it is made: mp3, opus, aac, flac, wav, and samples without a header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import av
import av.audio
import numpy as np

from slipstream.arrays import FloatArray
from slipstream.errors import AudioError


@dataclass(frozen=True, slots=True)
class Encoding:
    """A format: FFmpeg's names of its container and codec, and its media type."""

    container: str
    codec: str
    media_type: str


ENCODINGS = {
    "mp3": Encoding("mp3", "libmp3lame", "audio/mpeg"),
    "opus": Encoding("ogg", "libopus", "audio/ogg"),
    "aac": Encoding("adts", "aac", "audio/aac"),
    "flac": Encoding("flac", "flac", "audio/flac"),
    "wav": Encoding("wav", "pcm_s16le", "audio/wav"),
    "pcm": Encoding("s16le", "pcm_s16le", "audio/pcm"),
}
"""The formats by name. `pcm` is 16-bit samples, little-endian."""


class StreamEncoder:
    """Encodes mono audio piece by piece.

    Args:
        format: A name in `ENCODINGS`.
        sample_rate: Of the audio, in Hz.

    Raises:
        AudioError: FFmpeg cannot encode this format.

    Example:
        >>> encoder = StreamEncoder("flac", 24_000)
        >>> data = encoder.encode(np.zeros(1920, np.float32)) + encoder.end()
    """

    def __init__(self, format: str, sample_rate: int) -> None:
        if format not in ENCODINGS:
            raise AudioError(f"format {format!r}: expected {', '.join(ENCODINGS)}")
        encoding = ENCODINGS[format]
        self._sink = _Sink()
        try:
            self._container = av.open(
                cast("str", self._sink), "w", format=encoding.container, options={"flush_packets": "1"}
            )
            stream = self._container.add_stream(encoding.codec, rate=sample_rate)
        except (av.FFmpegError, ValueError) as error:
            raise AudioError(f"format {format!r} cannot be encoded here: {error}") from error
        self._stream = cast("av.AudioStream", stream)
        self._stream.codec_context.layout = av.audio.layout.AudioLayout("mono")
        self._rate, self._position = sample_rate, 0

    def encode(self, samples: FloatArray) -> bytes:
        """Encode a piece.

        Args:
            samples: float32 `[S]` within [-1, 1].

        Returns:
            The data that are complete.
        """
        if len(samples):
            integers = np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(integers[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = self._rate, self._position
            self._position += len(samples)
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        return self._sink.take()

    def end(self) -> bytes:
        """Encode what is left, and return the last data."""
        if self._position:
            for packet in self._stream.encode(None):
                self._container.mux(packet)
        self._container.close()
        return self._sink.take()


class _Sink:
    """What FFmpeg writes to. It cannot seek, so that no header is completed afterwards."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        self._data += data
        return len(data)

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data
