"""The client's messages: JSON with audio in base64, which is decoded in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slipstream.arrays import FloatArray
from slipstream.audio import Converter, PcmDecoder, RawFormat
from slipstream.audio.samples import equal_weights
from slipstream.dialects.protocol import PIECE_SAMPLES, ProtocolError
from slipstream.dialects.texts import b64decode, parse_object
from slipstream.errors import SlipstreamError


class InvalidMessage(SlipstreamError):
    """A message is invalid; the connection stays open. `code`, `param`: of the error that the client receives."""

    def __init__(self, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def read_message(text: str) -> dict[str, Any]:
    """Return the JSON object of a message. Raises `InvalidMessage`."""
    try:
        return parse_object(text)
    except ProtocolError as error:
        raise InvalidMessage(str(error), "invalid_json") from error


class AudioInput:
    """Decodes base64 audio in one format to the model's sample rate.

    Args:
        format: Of the audio; one channel.
        sample_rate: Of the model, in Hz.
    """

    def __init__(self, format: RawFormat, sample_rate: int) -> None:
        self.format = format
        samples = PIECE_SAMPLES * format.sample_rate // sample_rate
        self._piece_characters = samples * format.sample_bytes // 3 * 4
        self._decoder = PcmDecoder(format)
        self._converter = Converter(format.sample_rate, equal_weights(format.channels), sample_rate)

    def decode(self, audio: str) -> Iterator[FloatArray]:
        """Yield the samples of a message, `[S]`, in pieces; a sample may be cut between messages.

        Raises `InvalidMessage` at the first piece that is not base64; the pieces before it are decoded.
        """
        for start in range(0, len(audio), self._piece_characters):
            piece = audio[start : start + self._piece_characters]
            try:
                data = b64decode(piece)
            except ValueError as error:
                raise InvalidMessage(
                    f"audio: not base64 in the {len(piece)} characters from {start} on; those before it were taken",
                    "invalid_value",
                    "audio",
                ) from error
            if piece.endswith("=") and start + len(piece) < len(audio):
                raise InvalidMessage(
                    f"audio: padding before the end, at character {start + len(piece) - 1}", "invalid_value", "audio"
                )
            yield self.convert(data)

    def convert(self, data: bytes) -> FloatArray:
        """Return the samples of some bytes, `[S]`."""
        pcm_S: FloatArray = self._converter.push(self._decoder.push(data))[0]
        return pcm_S

    def flush(self) -> FloatArray:
        """Return the samples that the conversion has held back, `[S]`, and drop an incomplete one.

        What follows is converted as without this call (`Converter.drain`).
        """
        self._decoder = PcmDecoder(self.format)
        rest_S: FloatArray = self._converter.drain()[0]
        return rest_S
