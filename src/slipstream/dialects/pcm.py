"""Raw PCM that a client sends, for all dialects that take it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from slipstream.arrays import FloatArray
from slipstream.audio import Converter, Encoding, PcmDecoder, RawFormat
from slipstream.audio.samples import equal_weights
from slipstream.dialects.protocol import PIECE_SAMPLES, Audio, ProtocolError, check_audio
from slipstream.errors import AudioError

MAX_CHANNELS = 8
LOWEST_RATE = 4_000
"""At lower rates, speech cannot be recognised, and a byte would become more than 6 samples of the model."""
_PIECE_BYTES = 1 << 16


class PcmInput:
    """Decodes the raw PCM of one channel, cut anywhere, at the sample rate of the model.

    Args:
        format: Of the bytes.
        sample_rate: Of the model, in Hz.
        channel: Number of the channel.
    """

    def __init__(self, format: RawFormat, sample_rate: int, channel: int = 0) -> None:
        self.format, self._sample_rate, self._channel = format, sample_rate, channel
        piece_frames = format.sample_rate * PIECE_SAMPLES // sample_rate
        self._piece_bytes = min(piece_frames * format.channels * format.sample_bytes, _PIECE_BYTES)
        self.restart()

    def push(self, data: bytes) -> Iterator[Audio]:
        """Take bytes. Yields the audio that is ready, in pieces; the rest is at most 0.12 s behind."""
        for start in range(0, len(data), self._piece_bytes):
            samples_CS = self._decoder.push(data[start : start + self._piece_bytes])
            check_audio(samples_CS.reshape(-1))
            yield Audio(self._converter.push(samples_CS)[0], self._channel)

    def flush(self, *, last: bool) -> Iterator[Audio]:
        """Yield the audio that the conversion still holds, if any.

        Args:
            last: Whether the stream ends here. Otherwise it continues as without this call (`Converter.drain`).
        """
        rest_S: FloatArray = (self._converter.flush() if last else self._converter.drain())[0]
        if last:
            self.restart()
        if len(rest_S):
            yield Audio(rest_S, self._channel)

    def restart(self) -> None:
        """Drop what was pushed."""
        self._decoder = PcmDecoder(self.format)
        self._converter = Converter(self.format.sample_rate, equal_weights(self.format.channels), self._sample_rate)


def check_format(encoding: Any, sample_rate: int, channels: int = 1) -> RawFormat:
    """Return the format of a client's audio. Raises `ProtocolError` that names the invalid value."""
    if encoding not in get_args(Encoding):
        raise ProtocolError(f"encoding={encoding!r:.40}: expected one of {', '.join(get_args(Encoding))}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise ProtocolError(f"channels={channels}: expected 1 to {MAX_CHANNELS}")
    if sample_rate < LOWEST_RATE:
        raise ProtocolError(f"sample_rate={sample_rate}: expected at least {LOWEST_RATE} Hz")
    try:
        return RawFormat(encoding, sample_rate, channels)
    except AudioError as error:
        raise ProtocolError(str(error)) from error
