"""The words of telephone calls: the messages of a call, and the WebSocket that receives them.

The protocols of telephony carry audio only. A call's words go to the WebSocket `/v1/calls?id=...`, as JSON messages:
`start`, `partial`, `word`, `end_of_turn`, `turn`, `dtmf`, `progress`, `done` and `error`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from slipstream.dialects.models import StreamRequest
from slipstream.dialects.protocol import Action, CloseCode, Dialect, Message, ProtocolError, Publish, Subscribe
from slipstream.dialects.texts import dump
from slipstream.events import EndOfTurn, Event, Final, OpenWord, PartialWord, Step, Turn, Word

PATH = "/v1/calls"
PROGRESS_FRAMES = 125
"""How often `progress` is sent: 10 s of audio."""
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def check_id(id: Any) -> str:
    """Return the ID of a call. Raises `ProtocolError`."""
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise ProtocolError(f"id={id!r:.40}: expected the ID of a call, of letters, digits and ._:-")
    return id


class Call:
    """Publishes the events of one call. `tracks`: names of its channels."""

    def __init__(self, id: str, tracks: list[str]) -> None:
        self.id, self.tracks = id, tracks
        self._gaps: list[list[tuple[float, float]]] = [[] for _ in tracks]
        self._words: list[list[str]] = [[] for _ in tracks]

    def publish(self, type: str, droppable: bool = False, **fields: Any) -> Publish:
        """Return the action that publishes a message."""
        return Publish(self.id, dump(type=type, call=self.id, **fields), droppable)

    def skip(self, channel: int, position: float, seconds: float) -> None:
        """Count a gap of `seconds` after `position` seconds of audio, which makes later times later."""
        self._gaps[channel].append((position, seconds))

    def handle(self, event: Event, channel: int) -> Iterator[Publish]:
        """Yield the messages for an event."""
        track = self.tracks[channel]
        if isinstance(event, Step):
            if event.index % PROGRESS_FRAMES == 0:
                yield self.publish("progress", True, track=track, frames=event.index)
        elif isinstance(event, (PartialWord, OpenWord)):
            yield self.publish("partial", True, track=track, text=event.text, start=self._time(channel, event.start))
        elif isinstance(event, Word):
            self._words[channel].append(event.text)
            start, end = self._time(channel, event.start), self._time(channel, event.end)
            yield self.publish(
                "word", track=track, text=event.text, start=start, end=end, confidence=round(event.confidence, 4)
            )
        elif isinstance(event, EndOfTurn):
            yield self.publish("end_of_turn", track=track, time=self._time(channel, event.time))
        elif isinstance(event, Turn):
            text, self._words[channel] = " ".join(self._words[channel]), []
            start, end = self._time(channel, event.start), self._time(channel, event.end)
            yield self.publish("turn", track=track, start=start, end=end, text=text)
        elif isinstance(event, Final):
            yield self.publish("done", track=track, duration=self._time(channel, event.duration))

    def _time(self, channel: int, seconds: float) -> float:
        return round(seconds + sum(gap for position, gap in self._gaps[channel] if seconds >= position), 3)


def open_dialect(request: StreamRequest) -> CallsDialect:
    """Open the dialect for one connection. Raises `ProtocolError` without the ID of a call, or with more than that."""
    request.check_names("id")
    return CallsDialect(check_id(request.get("id")))


class CallsDialect(Dialect):
    """One connection that receives the words of a call, which need not have begun."""

    name = "calls"

    def __init__(self, id: str) -> None:
        self._id = id

    def open(self) -> Iterable[Action]:
        """Receive the messages of the call."""
        return (Subscribe(self._id),)

    def receive(self, message: Message) -> Iterator[Action]:
        """Refuse messages: there is nothing to send."""
        raise ProtocolError(f"{PATH} only sends messages")
        yield

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Return nothing: there is no session."""
        return ()

    def error(self, message: str, code: CloseCode) -> str:
        return dump(type="error", call=self._id, message=message, code=int(code))
