"""The dialects of `/v1/realtime`: OpenAI's transcription sessions, and vLLM's protocol on the same path.

An address with `intent=transcription`, the header `OpenAI-Beta` or a client secret mean OpenAI's. Otherwise the first
message decides; until then `session.created` has the fields of both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from slipstream.dialects.models import StreamRequest
from slipstream.dialects.protocol import Action, CloseCode, Dialect, Message, ProtocolError, Send
from slipstream.dialects.realtime.transcription import TranscriptionDialect
from slipstream.dialects.realtime.vllm import VllmDialect, is_vllm
from slipstream.events import Event

PATH = "/v1/realtime"
_BETA = "openai-beta.realtime-v1"


def open_dialect(request: StreamRequest) -> Dialect:
    """Open the dialect for one connection. Raises `ProtocolError` for another intent, and `UnknownModel`."""
    if (intent := request.get("intent")) not in (None, "transcription"):
        raise ProtocolError(f"intent={intent!r:.40}: this server has transcription sessions only")
    offered = request.headers.get("sec-websocket-protocol", "").split(",")  # a browser cannot set the header
    beta = request.headers.get("openai-beta") == "realtime=v1" or _BETA in map(str.strip, offered)
    if beta or intent is not None or request.configuration is not None:
        return TranscriptionDialect(request, beta=beta)
    return UndecidedDialect(request)


class UndecidedDialect(Dialect):
    """A connection whose first message decides between OpenAI's dialect and vLLM's."""

    name = "realtime"
    long_text = True

    def __init__(self, request: StreamRequest) -> None:
        self._openai, self._vllm = TranscriptionDialect(request), VllmDialect(request)
        self._chosen: Dialect | None = None

    def open(self) -> Iterable[Action]:
        """Send a `session.created` for both: see `Dialect.open`."""
        for action in self._openai.open():
            assert isinstance(action, Send)
            yield Send(json.dumps(json.loads(action.message) | self._vllm.created(), separators=(",", ":")))

    def receive(self, message: Message) -> Iterator[Action]:
        """Choose the dialect, and let it receive the message: see `Dialect.receive`."""
        if self._chosen is None:
            self._chosen = self._vllm if is_vllm(message) else self._openai
            self.name = self._chosen.name
        return self._chosen.receive(message)

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Let the chosen dialect handle the event: see `Dialect.handle`."""
        return self._chosen.handle(event, channel) if self._chosen is not None else ()

    def error(self, message: str, code: CloseCode) -> Message | None:
        return (self._chosen or self._openai).error(message, code)
