"""Raw PCM: audio without a header."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.audio.samples import SAMPLE_RATE, Piece, Warn, check_rate, equal_weights, frame_samples, from_integers
from slipstream.errors import AudioError

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext

Encoding = Literal["pcm_s16le", "pcm_s24le", "pcm_f32le", "mulaw", "alaw"]


@dataclass(frozen=True, slots=True)
class RawFormat:
    """Format of audio without a header: encoding, `sample_rate` in Hz, and number of interleaved channels."""

    encoding: Encoding
    sample_rate: int
    channels: int = 1

    def __post_init__(self) -> None:
        if self.encoding not in get_args(Encoding):
            raise AudioError(f"unknown encoding {self.encoding!r}: choose one of {', '.join(get_args(Encoding))}")
        check_rate(self.sample_rate)
        if self.channels < 1:
            raise AudioError(f"channels={self.channels}: raw audio has at least 1")

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample of one channel."""
        return {"pcm_s16le": 2, "pcm_s24le": 3, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}[self.encoding]


_ARRAYS: dict[Encoding, str] = {"pcm_s16le": "<i2", "pcm_f32le": "<f4"}
"""Encodings whose bytes NumPy reads as they are."""


class PcmDecoder:
    """Decodes headerless audio from a stream of bytes, wherever the bytes are cut.

    Servers decode every chunk of every client with it. FFmpeg decodes what is no array of NumPy's types.
    """

    def __init__(self, format: RawFormat) -> None:
        self.format = format
        self._rest = b""
        self._codec = None if format.encoding in _ARRAYS else _codec(format.encoding)

    @property
    def buffered(self) -> int:
        """Bytes that wait for the rest of their sample."""
        return len(self._rest)

    def push(self, data: bytes) -> FloatArray:
        """Take bytes. Returns the samples they complete, `[C, S]`."""
        data = self._rest + data if self._rest else data
        whole = len(data) - len(data) % (self.format.sample_bytes * self.format.channels)
        self._rest = data[whole:]
        if not whole:  # an empty packet would end FFmpeg's stream
            return np.zeros((self.format.channels, 0), np.float32)
        samples_S = self._samples(data[:whole])
        return np.ascontiguousarray(samples_S.reshape(-1, self.format.channels).T)

    def _samples(self, data: bytes) -> FloatArray:
        if self._codec is None:
            array: npt.NDArray[Any] = np.frombuffer(data, _ARRAYS[self.format.encoding])
            return array.astype(np.float32) if array.dtype.kind == "f" else from_integers(array)
        import av

        frames = self._codec.decode(av.Packet(data))
        return np.concatenate([piece[0] for frame in frames for piece in frame_samples(frame)])


def _codec(encoding: Encoding) -> AudioCodecContext:
    import av

    name = {"mulaw": "pcm_mulaw", "alaw": "pcm_alaw"}.get(encoding, encoding)
    codec = cast("AudioCodecContext", av.CodecContext.create(name, "r"))
    # FFmpeg sees one channel, at any rate: interleaved samples are separated by `PcmDecoder`.
    codec.sample_rate, codec.layout = SAMPLE_RATE, "mono"
    return codec


def raw_pieces(file: BinaryIO, format: RawFormat, name: str, warn: Warn) -> Iterator[Piece]:
    """Decode raw audio, as it arrives if `file` is a pipe."""
    decoder = PcmDecoder(format)
    read_some = getattr(file, "read1", file.read)  # read1 returns what is available, read waits for all
    weights = equal_weights(format.channels)
    while data := read_some(_READ_BYTES):
        yield Piece(decoder.push(data), format.sample_rate, weights)
    if decoder.buffered:
        warn(f"{name}: ends in the middle of a sample: is it {format.encoding}?")


_READ_BYTES = 1 << 16
