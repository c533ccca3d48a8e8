"""Kyutai's `/api/tts_streaming`: text in as it is written, audio and words out, over a WebSocket."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
from starlette.requests import HTTPConnection

from slipstream.audio.encode import StreamEncoder
from slipstream.connections.access import Access, Refused
from slipstream.connections.limits import Limits
from slipstream.dialects.protocol import Close, CloseCode, Message
from slipstream.engine.reading import Audio, SpeechEvent
from slipstream.engine.speech import SpeechSession
from slipstream.errors import ConfigError, EngineError, Overloaded, SlipstreamError
from slipstream.model.speech import Voice
from slipstream.server.speaking import ServedSpeaker
from slipstream.server.streams.outbox import Socket
from slipstream.server.streams.registry import StreamRegistry

PATH = "/api/tts_streaming"
FORMATS = ("Pcm", "PcmMessagePack", "OggOpus", "OggOpusMessagePack")
MAX_CHARACTERS = 200_000
"""Of the text of a session: about four hours of speech."""
MAX_MESSAGE = 1 << 20
"""Bytes of a message; the embedding of a voice has 576,000."""


def open_speech(
    request: HTTPConnection,
    socket: Socket,
    speaker: ServedSpeaker,
    access: Access,
    registry: StreamRegistry,
    limits: Limits,
) -> SpeechStream:
    """Make the stream of a new connection. Raises `Refused`."""
    client = request.scope["sender"] = access.check(request)
    if (format := request.query_params.get("format", "OggOpus")) not in FORMATS:
        raise Refused(400, f"format={format!r:.40}: expected {', '.join(FORMATS)}")
    access.enter(client)
    voice = request.query_params.get("voice")
    return SpeechStream(socket, speaker, voice, format, registry, limits, lambda: access.leave(client))


class SpeechStream:
    """One connection. The session opens with the first text, so that a voice can be sent before it.

    Args:
        socket: The connection.
        speaker: The model.
        voice: The name of a voice.
        format: How the audio is sent.
        registry: Wakes this object when the session has events.
        limits: The limits of the connection.
        over: Called when the connection has ended.
    """

    headers: Mapping[str, str] = {}
    long_text = True

    def __init__(
        self,
        socket: Socket,
        speaker: ServedSpeaker,
        voice: str | None,
        format: str,
        registry: StreamRegistry,
        limits: Limits,
        over: Callable[[], None],
    ) -> None:
        self._socket, self._speaker, self._registry, self._limits = socket, speaker, registry, limits
        self._voice: str | Voice | None = voice
        self._packed = format.endswith("MessagePack")
        self._opus = StreamEncoder("opus", speaker.sample_rate) if format.startswith("OggOpus") else None
        self._over = over
        self._session: SpeechSession | None = None
        self._characters = 0
        self._complete = self._closed = False
        self._began = self._last = time.monotonic()

    # --------------------------------------------------------------------------------- what the connection calls

    def opened(self) -> None:
        """Join the server's streams, and greet the client."""
        self._registry.join(self)
        if self._packed:
            self._socket.send(_pack({"type": "Ready"}))

    def receive(self, message: Message) -> None:
        """Take text, a voice, or the end of the text."""
        self._last = time.monotonic()
        if self._complete:
            return
        try:
            self._take(message)
        except Overloaded as error:
            self._close(CloseCode.TRY_LATER, str(error))
        except EngineError:
            self._close(CloseCode.INTERNAL_ERROR, "internal error")
        except (SlipstreamError, ValueError) as error:
            self._close(CloseCode.INVALID_PAYLOAD, str(error))

    def writable(self) -> None:
        """Send the events that waited while the client did not read."""
        self.deliver()

    def closed(self, code: int | None) -> None:
        """Stop the session: nobody listens."""
        self._closed = True
        if self._session is not None:
            self._session.cancel()
        self._registry.leave(self)
        self._over()

    # ----------------------------------------------------------------------------------- what the registry calls

    def deliver(self) -> None:
        """Send what the session has. While the client reads too slowly, the session waits."""
        session = self._session
        if session is None or self._closed or self._socket.congested:
            return
        try:
            for event in session.poll():
                self._send(event)
            ended = session.ended
        except SlipstreamError as error:
            invalid = isinstance(error, ConfigError)
            code = CloseCode.INVALID_PAYLOAD if invalid else CloseCode.INTERNAL_ERROR
            self._close(code, str(error) if invalid else "internal error")
            return
        if ended:
            if self._opus is not None and (data := self._opus.end()):
                self._send_opus(data)
            self._close(CloseCode.NORMAL, "")

    def sweep(self, now: float) -> None:
        """Close a connection that has been silent for too long, or open for too long."""
        if not self._complete and now - self._last > self._limits.idle_seconds:
            self._close(CloseCode.TIMED_OUT, f"no text for {self._limits.idle_seconds:g} s")
        elif now - self._began > self._limits.session_seconds:
            self._close(CloseCode.TIMED_OUT, f"the stream has lasted {self._limits.session_seconds:g} s")

    def end(self, close: Close) -> None:
        """The server stops: finish the text so far."""
        if self._session is None:
            self._close(close.code, close.reason)
        else:
            self._finish()

    # ---------------------------------------------------------------------------------------------------- in detail

    def _take(self, message: Message) -> None:
        if isinstance(message, str):
            self._feed(message)
            return
        if message == b"\0":
            self._finish()
            return
        if len(message) > MAX_MESSAGE:
            raise ConfigError(f"a message has at most {MAX_MESSAGE} bytes")
        fields = _unpack(message)
        kind = fields.get("type")
        if kind == "Text" and isinstance(fields.get("text"), str):
            self._feed(fields["text"])
        elif kind == "Eos":
            self._finish()
        elif kind == "Voice" and isinstance(fields.get("embeddings"), list) and isinstance(fields.get("shape"), list):
            if self._session is not None:
                raise ConfigError("the voice comes before the text")
            self._voice = self._speaker.embedding(fields["embeddings"], fields["shape"])
        else:
            raise ConfigError(f"unknown message {str(kind)!r:.40}: expected Text, Voice or Eos with their fields")

    def _feed(self, text: str) -> None:
        self._characters += len(text)
        if self._characters > MAX_CHARACTERS:
            raise ConfigError(f"a text has at most {MAX_CHARACTERS} characters")
        # The words of a message are complete: clients send them without the space between.
        self._opened_session().feed(text + " ")

    def _opened_session(self) -> SpeechSession:
        if self._session is None:
            voice = self._voice if isinstance(self._voice, Voice) else self._speaker.voice(self._voice)
            self._session = self._speaker.open(voice, self._registry.waker(self))
        return self._session

    def _finish(self) -> None:
        self._complete = True
        if self._session is None:
            self._close(CloseCode.NORMAL, "")
        else:
            self._session.end()

    def _send(self, event: SpeechEvent) -> None:
        if isinstance(event, Audio):
            if self._opus is not None:
                if data := self._opus.encode(event.samples):
                    self._send_opus(data)
            elif self._packed:
                self._socket.send(_pack({"type": "Audio", "pcm": event.samples.tolist()}))
            else:
                self._socket.send(event.samples.astype("<f4").tobytes())
        elif self._packed:
            self._socket.send(_pack({"type": "Text", "text": event.text, "start_s": event.start, "stop_s": event.end}))

    def _send_opus(self, data: bytes) -> None:
        self._socket.send(_pack({"type": "OggOpus", "data": data}) if self._packed else data)

    def _close(self, code: CloseCode, reason: str) -> None:
        if self._closed:
            return
        if reason and self._packed:
            self._socket.send(_pack({"type": "Error", "message": reason}))
        self._socket.close(Close(code, reason.encode()[:120].decode(errors="ignore")))


def _pack(message: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(message, use_single_float=True)
    return packed


def _unpack(message: bytes) -> dict[str, Any]:
    try:
        fields = msgpack.unpackb(message, raw=False)
    except Exception as error:
        raise ConfigError(f"not a msgpack message: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError("not a msgpack message: expected a map")
    return fields
