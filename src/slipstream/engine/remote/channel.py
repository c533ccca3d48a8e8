"""Messages between the process of an engine and one with sessions: what is in the shared memory, and who has a slot."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import TypeAlias

from slipstream.engine.slots import CopyRow, ForceToken, Reset, Restore, Snapshot

BUFFER_BYTES = 1 << 20
READ_BYTES = 1 << 18
_HEAD = struct.Struct("<II")


class Kind(IntEnum):
    """The kinds of messages. Numbers are unsigned 32-bit integers, times 64-bit floats."""

    FRAMES = 1
    """To the engine. A slot for each frame that is new in its ring, with `URGENT` added where it should not wait. One
    message has the frames of all slots of a session, so that one step takes them."""
    OPEN = 2
    """To the engine: a session's number, the slots that it needs, how long it may wait for them, in seconds, and
    whether slots are kept for it."""
    CLOSE = 3
    """To the engine: the number of a session that has ended."""
    OPERATION = 4
    """To the engine, in JSON: a session's first slot, and the name and values of an `Operation` for its next frame."""
    DONE = 5
    """From the engine, once per step: the slots whose next output is in its ring."""
    ADMITTED = 6
    """From the engine: a session's number and its slots."""
    REFUSED = 7
    """From the engine: a session's number, a `Refusal`, how many wait, and how many slots are free."""
    POSITIONS = 8
    """From the engine: pairs of a waiting session's number and its place in the queue, from 1."""


URGENT = 1 << 31


@dataclass(frozen=True, slots=True)
class EncodeAhead:
    """Encode this number of a session's next frames ahead: they are in the memory of its first slot."""

    frames: int


Operation: TypeAlias = Reset | Snapshot | Restore | CopyRow | ForceToken | EncodeAhead
_OPERATIONS: dict[str, type[Operation]] = {
    kind.__name__: kind for kind in (Reset, Snapshot, Restore, CopyRow, ForceToken, EncodeAhead)
}


def pack_operation(slot: int, operation: Operation) -> bytes:
    """Return the payload of an `OPERATION` message for the session with this first slot."""
    return json.dumps([slot, type(operation).__name__, *astuple(operation)]).encode()


def unpack_operation(payload: bytes) -> tuple[int, Operation]:
    """Return the slot and the operation of a payload. Raises `ValueError`, `KeyError` and `TypeError`."""
    slot, kind, *values = json.loads(payload)
    return slot, _OPERATIONS[kind](*values)


class Refusal(IntEnum):
    """Why a session gets no slot."""

    FULL = 0
    QUEUE_FULL = 1
    TIMED_OUT = 2


class Channel:
    """Sends and receives messages on one end of a socket pair, without waiting.

    It does not grow: each session has few frames and outputs on their way.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        self._socket = end
        self._unsent, self._unread = bytearray(), bytearray()
        self.closed = False
        """Whether the other end is gone, or this one was closed."""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether `flush` has something to send."""
        return bool(self._unsent) and not self.closed

    def put(self, kind: Kind, payload: bytes) -> None:
        """Add a message to those that the next `flush` sends."""
        self._unsent += _HEAD.pack(kind, len(payload)) + payload

    def flush(self) -> None:
        """Send what the socket takes now."""
        try:
            while self.unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:  # `receive` reads what came before the end
            self._unsent.clear()

    def receive(self) -> Iterator[tuple[Kind, bytes]]:
        """Yield the messages that have arrived."""
        try:
            while data := self._socket.recv(READ_BYTES):
                self._unread += data
                if len(data) < READ_BYTES:
                    break
            else:
                self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        position, unread = 0, bytes(self._unread)
        while len(unread) >= position + _HEAD.size:
            kind, size = _HEAD.unpack_from(unread, position)
            if len(unread) < position + _HEAD.size + size:
                break
            position += _HEAD.size + size
            yield Kind(kind), unread[position - size : position]
        del self._unread[:position]

    def close(self) -> None:
        """Close this end."""
        self.closed = True
        self._socket.close()
