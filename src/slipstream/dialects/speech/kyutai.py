"""Kyutai's `/api/tts_streaming`: text in as it is written, audio and words out, over a WebSocket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgpack
import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio.encode import StreamEncoder
from slipstream.dialects.models import SpeechInfo
from slipstream.dialects.packed import cut_floats
from slipstream.dialects.protocol import Close, CloseCode, Message, ProtocolError, Send
from slipstream.dialects.speech.protocol import Begin, EndText, SpeechAction, SpeechDialect, Spoken, Text
from slipstream.engine.reading import Audio, SpeechEvent
from slipstream.model.speech import Voice

PATH = "/api/tts_streaming"
FORMATS = ("Pcm", "PcmMessagePack", "OggOpus", "OggOpusMessagePack")
MAX_MESSAGE = 1 << 20
"""Bytes of a message in msgpack; the embedding of a voice has 576,000."""
MAX_UNPACKED = 1 << 14
"""Bytes of a message in msgpack in addition to the embedding of a voice. Unpacking makes an object of each value, and
blocks all other streams meanwhile: 1 MiB of empty lists takes a second."""


class KyutaiSpeech(SpeechDialect):
    """One connection. The session begins with the first text, so that a voice can be sent before it.

    Raises `ProtocolError` for an unknown format.
    """

    name = "kyutai-speech"

    def __init__(self, query: Mapping[str, str], info: SpeechInfo) -> None:
        format = query.get("format", "OggOpus")
        if format not in FORMATS:
            raise ProtocolError(f"format={format!r:.40}: expected {', '.join(FORMATS)}")
        self._voice: str | Voice | None = query.get("voice")
        self._packed = format.endswith("MessagePack")
        self._opus = StreamEncoder("opus", info.sample_rate) if format.startswith("OggOpus") else None
        self._begun = False

    def open(self) -> Iterator[SpeechAction]:
        if self._packed:
            yield Send(_pack({"type": "Ready"}))

    def receive(self, message: Message) -> Iterator[SpeechAction]:
        if isinstance(message, str):
            yield from self._feed(message)
            return
        if message == b"\0":
            yield from self._finish()
            return
        if len(message) > MAX_MESSAGE:
            raise ProtocolError(f"a message has at most {MAX_MESSAGE} bytes")
        fields = _unpack(message)
        kind = fields.get("type")
        if kind == "Text" and isinstance(fields.get("text"), str):
            yield from self._feed(fields["text"])
        elif kind == "Eos":
            yield from self._finish()
        elif (
            kind == "Voice"
            and isinstance(fields.get("embeddings"), list | np.ndarray)
            and isinstance(fields.get("shape"), list)
        ):
            if self._begun:
                raise ProtocolError("the voice comes before the text")
            self._voice = _embedding(fields["embeddings"], fields["shape"])
        else:
            raise ProtocolError(f"unknown message {str(kind)!r:.40}: expected Text, Voice or Eos with their fields")

    def handle(self, event: SpeechEvent | Spoken) -> Iterator[SpeechAction]:
        if isinstance(event, Spoken):
            if self._opus is not None and (data := self._opus.end()):
                yield self._send_opus(data)
            yield Close(CloseCode.NORMAL)
        elif isinstance(event, Audio):
            if self._opus is not None:
                if data := self._opus.encode(event.samples):
                    yield self._send_opus(data)
            elif self._packed:
                yield Send(_pack({"type": "Audio", "pcm": event.samples.tolist()}))
            else:
                yield Send(event.samples.astype("<f4").tobytes())
        elif self._packed:
            yield Send(_pack({"type": "Text", "text": event.text, "start_s": event.start, "stop_s": event.end}))

    def error(self, message: str, code: CloseCode) -> bytes | None:
        return _pack({"type": "Error", "message": message}) if self._packed else None

    # ---------------------------------------------------------------------------------------------------- in detail

    def _feed(self, text: str) -> Iterator[SpeechAction]:
        if not self._begun:
            self._begun = True
            yield Begin(self._voice)
        # The words of a message are complete: clients send them without the space between.
        yield Text(text + " ")

    def _finish(self) -> Iterator[SpeechAction]:
        yield EndText() if self._begun else Close(CloseCode.NORMAL)

    def _send_opus(self, data: bytes) -> Send:
        return Send(_pack({"type": "OggOpus", "data": data}) if self._packed else data)


def _embedding(numbers: Any, shape: list[Any]) -> Voice:
    """Return the voice that a client sends. Raises `ProtocolError` if its shape is not that of a voice."""
    whole = all(type(size) is int and size > 0 for size in shape)
    if not whole or len(shape) != 3 or shape[0] != 1 or len(numbers) != shape[1] * shape[2]:
        found = f"an embedding of shape {shape!r:.80} and {len(numbers)} numbers"
        raise ProtocolError(f"{found}: expected the shape [1, width, frames] of its numbers")
    if isinstance(numbers, list) and any(type(number) not in (int, float) for number in numbers):
        raise ProtocolError("an embedding has values that are no numbers")
    with np.errstate(over="ignore"):  # infinity, which is refused
        array: FloatArray = np.asarray(numbers, np.float64).astype(np.float32).reshape(shape[1:])
    if not np.isfinite(array).all():
        raise ProtocolError("the numbers of an embedding must be finite")
    return Voice("of the client", embeddings=(array,))


def _pack(message: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(message, use_single_float=True)
    return packed


def _unpack(message: bytes) -> dict[str, Any]:
    embeddings = None
    if len(message) > MAX_UNPACKED:
        message, embeddings = cut_floats(message, "embeddings")
    if len(message) > MAX_UNPACKED:
        raise ProtocolError(f"a message has at most {MAX_UNPACKED} bytes in addition to a list of floats as embeddings")
    try:
        fields = msgpack.unpackb(message, raw=False)
    except Exception as error:
        raise ProtocolError(f"not a msgpack message: {error}") from error
    if not isinstance(fields, dict):
        raise ProtocolError("not a msgpack message: expected a map")
    if embeddings is not None:
        fields["embeddings"] = embeddings
    return fields
