"""Encode audio as it is made: mp3, opus, aac, flac, wav, and samples without a header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import av
import av.audio
import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio.resample import Resampler
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
TELEPHONE = {
    "mulaw": Encoding("mulaw", "pcm_mulaw", "audio/basic"),
    "alaw": Encoding("alaw", "pcm_alaw", "audio/PCMA"),
}
"""Formats of telephony: one byte per sample, at 8 kHz."""


class StreamEncoder:
    """Encodes mono audio piece by piece.

    Args:
        format: A name in `ENCODINGS` or `TELEPHONE`.
        sample_rate: Of the audio, in Hz.
        to_rate: Of the encoded audio, in Hz; that of the audio by default.
        bit_rate: In bit/s; FFmpeg's choice by default.

    Raises:
        AudioError: FFmpeg cannot encode this format.

    Example:
        >>> encoder = StreamEncoder("flac", 24_000)
        >>> data = encoder.encode(np.zeros(1920, np.float32)) + encoder.end()
    """

    def __init__(self, format: str, sample_rate: int, to_rate: int | None = None, bit_rate: int | None = None) -> None:
        encodings = {**ENCODINGS, **TELEPHONE}
        if format not in encodings:
            raise AudioError(f"format {format!r}: expected {', '.join(encodings)}")
        encoding, rate = encodings[format], to_rate or sample_rate
        self._resampler = Resampler(sample_rate, rate)
        self._sink = _Sink()
        try:
            self._container = av.open(
                cast("str", self._sink), "w", format=encoding.container, options={"flush_packets": "1"}
            )
            stream = self._container.add_stream(encoding.codec, rate=rate)
        except (av.FFmpegError, ValueError) as error:
            raise AudioError(f"format {format!r} cannot be encoded here: {error}") from error
        self._stream = cast("av.AudioStream", stream)
        if bit_rate is not None:
            self._stream.bit_rate = bit_rate
        self._stream.codec_context.layout = av.audio.layout.AudioLayout("mono")
        self._rate, self._position = rate, 0

    def encode(self, samples: FloatArray) -> bytes:
        """Encode a piece.

        Args:
            samples: float32 `[S]` within [-1, 1].

        Returns:
            The data that are complete.
        """
        self._encode(self._resampler.push(samples[None])[0])
        return self._sink.take()

    def end(self) -> bytes:
        """Encode what is left, and return the last data."""
        self._encode(self._resampler.flush()[0])
        if self._position:
            for packet in self._stream.encode(None):
                self._container.mux(packet)
        self._container.close()
        return self._sink.take()

    def _encode(self, samples: FloatArray) -> None:
        if len(samples):
            integers = np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(integers[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = self._rate, self._position
            self._position += len(samples)
            for packet in self._stream.encode(frame):
                self._container.mux(packet)


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
