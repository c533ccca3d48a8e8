"""Raw PCM: audio without a header."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, get_args

import numpy as np
import numpy.typing as npt

from slipstream.audio.samples import Piece, check_rate, from_integers, logger
from slipstream.errors import AudioError
from slipstream.types import FloatArray

Encoding = Literal["pcm_s16le", "pcm_s24le", "pcm_f32le", "mulaw", "alaw"]


@dataclass(frozen=True, slots=True)
class RawFormat:
    """What headerless audio is: its encoding, `sample_rate` in Hz, and how many channels are interleaved."""

    encoding: Encoding
    sample_rate: int
    channels: int = 1

    def __post_init__(self) -> None:
        if self.encoding not in get_args(Encoding):
            raise AudioError(f"unknown encoding {self.encoding!r}: choose one of {', '.join(get_args(Encoding))}")
        check_rate(self.sample_rate)
        if self.channels < 1:
            raise AudioError(f"raw audio of {self.channels} channels: there must be at least one")

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample of one channel."""
        return {"pcm_s16le": 2, "pcm_s24le": 3, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}[self.encoding]


class PcmDecoder:
    """Decodes headerless audio from a stream of bytes, wherever the bytes are cut."""

    def __init__(self, format: RawFormat) -> None:
        self.format = format
        self._rest = b""

    @property
    def buffered(self) -> int:
        """Bytes that wait for the rest of their sample."""
        return len(self._rest)

    def push(self, data: bytes) -> FloatArray:
        """Take bytes in, give the samples they complete, `[C, S]`."""
        data = self._rest + data
        whole = len(data) - len(data) % (self.format.sample_bytes * self.format.channels)
        self._rest = data[whole:]
        samples = _DECODE_PCM[self.format.encoding](np.frombuffer(data[:whole], np.uint8))
        return np.ascontiguousarray(samples.reshape(-1, self.format.channels).T)


def raw_pieces(file: BinaryIO, format: RawFormat, name: str) -> Iterator[Piece]:
    decoder = PcmDecoder(format)
    read_some = getattr(file, "read1", file.read)  # read1 gives what a pipe holds now, read waits for all
    while data := read_some(_READ_BYTES):
        yield decoder.push(data), format.sample_rate
    if decoder.buffered:
        logger.warning("%s: ends in the middle of a sample: is it %s?", name, format.encoding)


_READ_BYTES = 1 << 16


def _decode_s24(data: npt.NDArray[np.uint8]) -> FloatArray:
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    wide[:, 1:] = data.reshape(-1, 3)
    return from_integers(wide.view("<i4")[:, 0])


def _mulaw_table() -> FloatArray:
    """G.711 mu-law, table 2a/2b: the bits inverted; sign, three bits of exponent, four of mantissa, bias 33 of 8192."""
    code = 255 - np.arange(256)
    magnitude = (((code & 15) * 8 + 132) << (code >> 4 & 7)) - 132
    return (np.where(code & 128, -magnitude, magnitude) / 32768).astype(np.float32)


def _alaw_table() -> FloatArray:
    """G.711 A-law, table 1a/1b: even bits inverted; the first of eight segments is linear, the next continues it."""
    code = np.arange(256) ^ 0x55
    segment = code >> 4 & 7
    magnitude: npt.NDArray[np.int64] = ((code & 15) * 16 + 8 + np.where(segment, 256, 0)) << np.maximum(segment - 1, 0)
    return (np.where(code & 128, magnitude, -magnitude) / 32768).astype(np.float32)


_MULAW, _ALAW = _mulaw_table(), _alaw_table()
_DECODE_PCM: dict[Encoding, Callable[[npt.NDArray[np.uint8]], FloatArray]] = {
    "pcm_s16le": lambda data: from_integers(data.view("<i2")),
    "pcm_s24le": _decode_s24,
    "pcm_f32le": lambda data: data.view("<f4").astype(np.float32),
    "mulaw": lambda data: _MULAW[data],
    "alaw": lambda data: _ALAW[data],
}
