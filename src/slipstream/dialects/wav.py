"""Read the header of a live WAV stream from bytes that are cut anywhere."""

from __future__ import annotations

from slipstream.audio import Encoding, RawFormat
from slipstream.dialects.protocol import ProtocolError
from slipstream.errors import AudioError

_ENCODINGS: dict[tuple[int, int], Encoding] = {
    (1, 16): "pcm_s16le",
    (1, 24): "pcm_s24le",
    (3, 32): "pcm_f32le",
    (6, 8): "alaw",
    (7, 8): "mulaw",
}
_EXTENSIBLE = 0xFFFE
_MAX_FORMAT_BYTES = 4096
_STREAMED = (0, 0x7FFFFFFF, 0xFFFFFFFF)
"""Sizes that writers of streams state, since they do not know the length."""


class WavHeader:
    """Finds the samples of a WAV stream.

    Attributes:
        format: Of the samples, once the header is complete.
    """

    def __init__(self) -> None:
        self.format: RawFormat | None = None
        self._held = bytearray()
        self._skip = 12  # "RIFF", the size of the file, "WAVE"
        self._declared: RawFormat | None = None
        self._left: int | None = None

    def push(self, data: bytes) -> bytes:
        """Take bytes. Returns those that are samples. Raises `ProtocolError` for a format that is not supported."""
        if self.format is not None:
            return self._samples(data)
        self._held += data
        while True:
            if self._skip:
                skipped = min(self._skip, len(self._held))
                del self._held[:skipped]
                self._skip -= skipped
            if self._skip or len(self._held) < 8:
                return b""
            kind, size = bytes(self._held[:4]), int.from_bytes(self._held[4:8], "little")
            if kind == b"data":
                if self._declared is None:
                    raise ProtocolError("not a WAV stream: its format must come before its samples")
                self.format, self._left = self._declared, None if size in _STREAMED else size
                data = bytes(self._held[8:])
                self._held.clear()
                return self._samples(data)
            if kind != b"fmt ":
                self._skip = 8 + size + size % 2
                continue
            if not 16 <= size <= _MAX_FORMAT_BYTES:
                raise ProtocolError(f"not a WAV stream: its format has {size} bytes")
            if len(self._held) < 8 + size:
                return b""
            self._declared = _read_format(bytes(self._held[8 : 8 + size]))
            self._skip = 8 + size + size % 2

    def _samples(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        data = data[: self._left]
        self._left -= len(data)
        return data


def _read_format(body: bytes) -> RawFormat:
    tag, channels = int.from_bytes(body[:2], "little"), int.from_bytes(body[2:4], "little")
    rate, bits = int.from_bytes(body[4:8], "little"), int.from_bytes(body[14:16], "little")
    if tag == _EXTENSIBLE and len(body) >= 26:
        tag = int.from_bytes(body[24:26], "little")
    if (tag, bits) not in _ENCODINGS:
        raise ProtocolError(
            f"WAV of format {tag} with {bits} bits: expected PCM of 16 or 24 bits, float, A-law or µ-law"
        )
    try:
        return RawFormat(_ENCODINGS[tag, bits], rate, channels)
    except AudioError as error:
        raise ProtocolError(str(error)) from error
