"""The events of the Wyoming protocol on a byte stream.

An event is a line of JSON, then `data_length` bytes of JSON that are merged into its `data`, then `payload_length`
bytes of payload.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from slipstream.dialects.protocol import ProtocolError
from slipstream.dialects.texts import parse_json

VERSION = "1.10.2"
"""The version of the `wyoming` package whose messages these are; receivers ignore it."""
MAX_JSON_BYTES = 64 << 10
"""Of a line, and of its data."""
MAX_PAYLOAD_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class WyomingEvent:
    """An event. One that was received is without its payload, which follows in pieces."""

    type: str
    data: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""

    def __bytes__(self) -> bytes:
        head: dict[str, Any] = {"type": self.type, "version": VERSION}
        data = b""
        if self.data:
            data = json.dumps(self.data, ensure_ascii=False).encode()
            head["data_length"] = len(data)
        if self.payload:
            head["payload_length"] = len(self.payload)
        return json.dumps(head).encode() + b"\n" + data + self.payload


class EventReader:
    """Reads events from bytes that are cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._head: dict[str, Any] | None = None
        self._data_left = self._payload_left = 0

    def push(self, data: bytes) -> Iterator[WyomingEvent | bytes]:
        """Take bytes. Yields each event, and then its payload in pieces.

        Raises `ProtocolError` for bytes that are not events, and for events that are too long.
        """
        self._rest += data
        while self._rest:
            if self._payload_left:
                piece, self._rest = self._rest[: self._payload_left], self._rest[self._payload_left :]
                self._payload_left -= len(piece)
                yield piece
            elif (event := self._next_event()) is not None:
                yield event
            else:
                return

    def _next_event(self) -> WyomingEvent | None:
        """The next event, if all its bytes are there."""
        if self._head is None:
            line, newline, rest = self._rest.partition(b"\n")
            if len(line) > MAX_JSON_BYTES:
                raise ProtocolError(f"a line of an event has at most {MAX_JSON_BYTES} bytes")
            if not newline:
                return None
            self._rest = rest
            self._head = _object(line)
            self._data_left = _length(self._head, "data_length", MAX_JSON_BYTES)
        if len(self._rest) < self._data_left:
            return None
        head, self._head = self._head, None
        data = head.get("data") or {}
        if not isinstance(data, dict) or not isinstance(head.get("type"), str):
            raise ProtocolError("an event has a type, which is a string, and data, which is an object")
        if self._data_left:
            data |= _object(self._rest[: self._data_left])
            self._rest, self._data_left = self._rest[self._data_left :], 0
        self._payload_left = _length(head, "payload_length", MAX_PAYLOAD_BYTES)
        return WyomingEvent(head["type"], data)


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a Wyoming event, which is a line of JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProtocolError(f"not a Wyoming event: expected a JSON object, got {type(value).__name__}")
    return value


def _length(head: dict[str, Any], name: str, most: int) -> int:
    length = head.get(name) or 0
    if type(length) is not int or not 0 <= length <= most:
        raise ProtocolError(f"{name}={length!r:.40}: expected 0 to {most}")
    return length
