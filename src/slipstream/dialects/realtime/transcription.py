"""OpenAI's Realtime transcription sessions, in the GA and the beta message formats: JSON in text messages.

In: `session.update` (beta: `transcription_session.update`), `input_audio_buffer.append`, `.commit` and `.clear`. Out:
`session.created`, `session.updated`, `input_audio_buffer.speech_started`, `.speech_stopped`, `.committed`, `.cleared`
and `.timeout_triggered`, `conversation.item.added` and `.done` (beta: `.created`), `conversation.item.
input_audio_transcription.delta` and `.completed`, and `error`, after which the connection stays open.

A commit is a flush. Where turns are detected, the engine flushes at each end of a turn.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from slipstream.audio import RawFormat
from slipstream.dialects.models import StreamRequest
from slipstream.dialects.order import Order, Table
from slipstream.dialects.protocol import (
    Action,
    Audio,
    CloseCode,
    Dialect,
    Flush,
    Marker,
    Message,
    Open,
    ProtocolError,
    Send,
    SetHints,
    SetTurns,
)
from slipstream.dialects.realtime.items import Boundary, Item, Segment, logprob_fields
from slipstream.dialects.realtime.messages import AudioInput, InvalidMessage, read_message
from slipstream.dialects.realtime.settings import configure
from slipstream.dialects.texts import word_fields
from slipstream.engine.options import SessionOptions
from slipstream.events import EndOfTurn, Event, Final, Flushed, MarkerReached, OpenWord, StartOfTurn, Step, Word
from slipstream.transcript import languages_of

ORDER: Table = {
    "no audio yet": {
        "session.update": "no audio yet",
        "session.update with another model": "no audio yet",
        "input_audio_buffer.append": "audio in the buffer",
        "input_audio_buffer.clear": "no audio yet",
    },
    "audio in the buffer": {
        "session.update": "audio in the buffer",
        "input_audio_buffer.append": "audio in the buffer",
        "input_audio_buffer.commit": "empty buffer",
        "input_audio_buffer.clear": "empty buffer",
    },
    "empty buffer": {
        "session.update": "empty buffer",
        "input_audio_buffer.append": "audio in the buffer",
        "input_audio_buffer.clear": "empty buffer",
    },
}
"""The legal order of the client's messages. `transcription_session.update` counts as `session.update`."""

_TEXT = "conversation.item.input_audio_transcription"
_EMPTY_COMMIT = "input_audio_buffer_commit_empty"


class TranscriptionDialect(Dialect):
    """One transcription session.

    Args:
        request: The request that opened it. Its configuration comes before the messages of the client.
        beta: Whether its messages have the beta format.
        media: Format of the audio in binary messages, where it does not come in `input_audio_buffer.append`.
    """

    name = "realtime"
    long_text = True

    def __init__(self, request: StreamRequest, *, beta: bool = False, media: RawFormat | None = None) -> None:
        self._models, self._beta, self._media = request.models, beta, media
        self._id = request.id
        self._expires = request.time + round(request.session_seconds)
        try:
            self._configuration, self._info = configure(
                request.configuration or {}, request.models, request.get("model")
            )
        except InvalidMessage as error:
            raise ProtocolError(f"the client secret: {error}") from error
        self._settings = self._configuration.settings(self._info)
        self._input = AudioInput(media or self._settings.format, self._info.sample_rate)
        self._order = Order(ORDER)
        self._open_model: str | None = None
        self._received = 0  # samples, at the model's rate
        self._segments = deque([Segment()])  # the first one is in the model, the last one receives audio
        self._markers = self._sent = self._items = 0
        self._previous: str | None = None
        self._last_end = 0.0  # of the last item
        self._client_event: str | None = None
        self._receivers: dict[str, Callable[[dict[str, Any]], Iterator[Action]]] = {
            "session.update": self._update,
            "transcription_session.update": self._update_beta,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
        }
        self._handlers: dict[type[Event], Callable[[Any], Iterator[Action]]] = {
            OpenWord: self._text,
            Word: self._text,
            StartOfTurn: self._turn_started,
            EndOfTurn: self._turn_ended,
            Flushed: self._flushed,
            MarkerReached: self._boundary_reached,
            Final: self._finish,
        }

    def open(self) -> Iterable[Action]:
        """Describe the session. A slot is taken with the first message: see `Dialect.open`."""
        kind = "transcription_session.created" if self._beta else "session.created"
        return (self._event(kind, session=self._session()),)

    def receive(self, message: Message) -> Iterator[Action]:
        """Yield the actions for a message: see `Dialect.receive`. An invalid one is answered by an `error`."""
        self._client_event = None
        try:
            if isinstance(message, bytes):
                if self._media is not None:
                    yield from self._take_media(message)
                    return
                raise InvalidMessage("messages are JSON in text messages, not binary", "invalid_event")
            fields = read_message(message)
            event = fields.get("event_id")
            self._client_event = event if isinstance(event, str) else None
            kind = fields.get("type")
            if not isinstance(kind, str) or kind not in self._receivers:
                expected = ", ".join(self._receivers)
                raise InvalidMessage(f"unknown type {kind!r:.80}: expected {expected}", "invalid_value", "type")
            yield from self._receivers[kind](fields)
        except InvalidMessage as error:
            yield self._error(str(error), "invalid_request_error", error.code, error.param)

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Yield the actions for an event: see `Dialect.handle`."""
        if type(event) is Step:
            idle = self._settings.idle_seconds
            return self._time_out(event, idle) if idle is not None else ()
        handler = self._handlers.get(type(event))
        return handler(event) if handler is not None else ()

    def error(self, message: str, code: CloseCode) -> Message:
        """Return the last error of a connection: see `Dialect.error`."""
        kind = "invalid_request_error" if code in _CLIENTS_FAULT else "server_error"
        return self._error(message, kind, code.name.lower(), None).message

    # -------------------------------------------------------------------------------------------------- from the client

    def _update(self, fields: dict[str, Any]) -> Iterator[Action]:
        session = fields.get("session")
        if not isinstance(session, dict):
            raise InvalidMessage("session: expected an object", "invalid_value", "session")
        configuration = self._configuration.updated(session, beta=self._beta)
        info = configuration.find(self._models)
        settings = configuration.settings(info)
        if info is not self._info:
            self._follow("session.update with another model", "invalid_value")
        self._follow("session.update", "invalid_value")
        if settings.format != self._settings.format or info is not self._info:
            yield from self._rest()
            self._input = AudioInput(self._media or settings.format, info.sample_rate)
        before, self._settings = self._settings, settings
        self._configuration, self._info = configuration, info
        if self._open_model != info.model:
            yield self._open_session()
        else:
            if before.turns != settings.turns:
                yield SetTurns(settings.turns or info.turns, low_latency=settings.turns is not None)
            if before.hints != settings.hints:
                yield SetHints(settings.hints)
        kind = "transcription_session.updated" if self._beta else "session.updated"
        yield self._event(kind, session=self._session())

    def _update_beta(self, fields: dict[str, Any]) -> Iterator[Action]:
        self._beta = True
        return self._update(fields)

    def _append(self, fields: dict[str, Any]) -> Iterator[Action]:
        audio = fields.get("audio")
        if self._media is not None:
            raise InvalidMessage("the audio of a call comes from its track", "invalid_event")
        if not isinstance(audio, str):
            raise InvalidMessage("audio: expected text in base64", "invalid_value", "audio")
        if not audio:
            return
        self._follow("input_audio_buffer.append")
        if self._open_model is None:
            yield self._open_session()
        for pcm_S in self._input.decode(audio):
            self._received += len(pcm_S)
            yield Audio(pcm_S)

    def _take_media(self, data: bytes) -> Iterator[Action]:
        self._follow("input_audio_buffer.append")
        if self._open_model is None:
            yield self._open_session()
        pcm_S = self._input.convert(data)
        self._received += len(pcm_S)
        yield Audio(pcm_S)

    def _commit(self, fields: dict[str, Any]) -> Iterator[Action]:
        self._follow("input_audio_buffer.commit", _EMPTY_COMMIT)
        yield from self._rest()
        segment = self._segments[-1]
        segment.boundary, segment.end = Boundary.COMMIT, self._received_seconds
        if self._settings.turns is None and not (segment.item and segment.item.committed):
            segment.item = segment.item or self._new_item(segment.start)
            yield from self._stop_item(segment.item, segment.end)  # turns may have been detected when it began
        yield from self._end_segment(segment)

    def _clear(self, fields: dict[str, Any]) -> Iterator[Action]:
        self._follow("input_audio_buffer.clear")
        yield from self._rest()
        segment = self._segments[-1]
        segment.boundary, segment.end = Boundary.CLEAR, self._received_seconds
        yield self._event("input_audio_buffer.cleared")
        if self._open_model is not None:
            yield from self._end_segment(segment)

    def _end_segment(self, segment: Segment) -> Iterator[Action]:
        """Write all text of a segment; the marker comes back after it."""
        self._segments.append(Segment(segment.end))
        self._markers += 1
        yield Marker(self._markers)
        yield Flush()

    def _open_session(self) -> Open:
        self._open_model = self._info.model
        turns = self._settings.turns
        options = SessionOptions(
            partials=False, steps=True, low_latency=turns is not None, turns=turns, hints=self._settings.hints
        )
        return Open(options, self._info.model)

    def _rest(self) -> Iterator[Action]:
        """Send the audio that the conversion has held back."""
        rest_S = self._input.flush()
        self._received += len(rest_S)
        if len(rest_S):
            yield Audio(rest_S)

    def _follow(self, message: str, code: str = "invalid_event") -> None:
        try:
            self._order.follow(message)
        except ProtocolError as error:
            raise InvalidMessage(str(error), code) from error

    @property
    def _received_seconds(self) -> float:
        return self._received / self._info.sample_rate

    # ------------------------------------------------------------------------------------------------- from the session

    def _text(self, event: OpenWord | Word) -> Iterator[Action]:
        segment = self._segments[0]
        if segment.dropped:
            return
        if segment.item is None:
            yield from self._start_item(segment, event.start)
        item = segment.item
        assert item is not None
        if delta := item.add(event):
            fields: dict[str, Any] = {"item_id": item.id, "content_index": 0, "delta": delta}
            if self._settings.logprobs:
                fields["logprobs"] = [logprob_fields(delta, event.confidence)]
            yield self._event(f"{_TEXT}.delta", **fields)

    def _turn_started(self, event: StartOfTurn) -> Iterator[Action]:
        segment = self._segments[0]
        if self._settings.turns is None:
            return
        if segment.item is not None and segment.item.by_turn:  # its end was found without a flush
            yield from self._complete(segment)
        if segment.item is None and not segment.dropped:
            yield from self._start_item(segment, event.time)

    def _turn_ended(self, event: EndOfTurn) -> Iterator[Action]:
        segment = self._segments[0]
        item = segment.item
        if self._settings.turns is not None and item is not None and not item.committed and not segment.dropped:
            item.by_turn = True
            yield from self._stop_item(item, event.time)

    def _flushed(self, event: Flushed) -> Iterator[Action]:
        segment = self._segments[0]
        if segment.item is not None and segment.item.by_turn and event.time >= (segment.item.end or 0.0):
            yield from self._complete(segment)

    def _boundary_reached(self, event: MarkerReached) -> Iterator[Action]:
        segment = self._segments[0]
        if segment.boundary is None:
            return
        if segment.item is not None and segment.item.by_turn:
            yield from self._complete(segment)
        if segment.boundary is Boundary.COMMIT:
            item = segment.item = segment.item or self._new_item(max(segment.start, self._last_end))
            if not item.committed:
                yield from self._stop_item(item, segment.end)
            yield from self._complete(segment)
        self._last_end = max(self._last_end, segment.end)
        self._segments.popleft()

    def _finish(self, event: Final) -> Iterator[Action]:
        """Complete the item that the end of the stream, such as a drain, has left open."""
        segment = self._segments[0]
        if (item := segment.item) is not None and not segment.dropped:
            if not item.committed:
                yield from self._stop_item(item, event.duration)
            yield from self._complete(segment)

    def _time_out(self, event: Step, idle_seconds: float) -> Iterator[Action]:
        segment, clock = self._segments[0], event.index * self._info.frame_seconds
        if segment.item is not None:
            self._last_end = clock
        elif clock - self._last_end >= idle_seconds:
            item = segment.item = self._new_item(self._last_end)
            times = {"audio_start_ms": _ms(item.start), "audio_end_ms": _ms(clock)}
            yield self._event("input_audio_buffer.timeout_triggered", **times, item_id=item.id)
            yield from self._commit_item(item, clock)
            yield from self._complete(segment)

    # ------------------------------------------------------------------------------------------------------------ items

    def _new_item(self, start: float) -> Item:
        self._items += 1
        return Item(f"item_{self._id}_{self._items}", start)

    def _start_item(self, segment: Segment, speech_start: float) -> Iterator[Action]:
        """Begin an item with speech that starts at `speech_start`."""
        if self._settings.turns is None:
            segment.item = self._new_item(segment.start)
            return
        start = max(self._last_end, segment.start, speech_start - self._settings.prefix_seconds)
        item = segment.item = self._new_item(start)
        item.speaking = True
        yield self._event("input_audio_buffer.speech_started", audio_start_ms=_ms(start), item_id=item.id)

    def _stop_item(self, item: Item, end: float) -> Iterator[Action]:
        """Commit an item, whose speech has ended."""
        if item.speaking:
            item.speaking = False
            yield self._event("input_audio_buffer.speech_stopped", audio_end_ms=_ms(end), item_id=item.id)
        yield from self._commit_item(item, end)

    def _commit_item(self, item: Item, end: float) -> Iterator[Action]:
        item.committed, item.end = True, max(item.start, end)
        previous, self._previous = self._previous, item.id
        yield self._event("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous)
        content = [{"type": "input_audio", "transcript": None}]
        fields = {
            "previous_item_id": previous,
            "item": {
                "id": item.id,
                "object": "realtime.item",
                "type": "message",
                "status": "completed",
                "role": "user",
                "content": content,
            },
        }
        for name in ("created",) if self._beta else ("added", "done"):
            yield self._event(f"conversation.item.{name}", **fields)

    def _complete(self, segment: Segment) -> Iterator[Action]:
        """Send the transcript of the committed item of a segment."""
        item, segment.item = segment.item, None
        assert item is not None
        assert item.end is not None
        self._last_end = max(self._last_end, item.end)
        fields: dict[str, Any] = {
            "item_id": item.id,
            "content_index": 0,
            "transcript": item.transcript,
            "usage": {"type": "duration", "seconds": round(item.end - item.start, 3)},
            "words": [word_fields(word) for word in item.words],
        }
        if languages := languages_of(item.words):
            fields["languages"] = [{"code": code} for code in languages]
        if self._settings.logprobs:
            fields["logprobs"] = [logprob_fields(word.text, word.confidence) for word in item.words]
        yield self._event(f"{_TEXT}.completed", **fields)

    # --------------------------------------------------------------------------------------------------------- messages

    def _session(self) -> dict[str, Any]:
        return {
            **self._configuration.shown(self._id, self._info, beta=self._beta),
            "expires_at": self._expires,
        }

    def _error(self, message: str, kind: str, code: str, param: str | None) -> Send:
        detail = {"type": kind, "code": code, "message": message, "param": param, "event_id": self._client_event}
        return self._event("error", error=detail)

    def _event(self, kind: str, **fields: Any) -> Send:
        self._sent += 1
        event = {"type": kind, "event_id": f"event_{self._id}_{self._sent}", **fields}
        return Send(json.dumps(event, separators=(",", ":")))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


_CLIENTS_FAULT = (CloseCode.INVALID_PAYLOAD, CloseCode.POLICY_VIOLATION, CloseCode.TOO_BIG)
