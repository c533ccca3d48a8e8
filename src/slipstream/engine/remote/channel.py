"""Messages between the process of an engine and one with sessions: what is in the shared memory, and who has a slot."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from slipstream.engine.flush import SlotOp

BUFFER_BYTES = 1 << 20
READ_BYTES = 1 << 18
_HEAD = struct.Struct("<II")


class Kind(IntEnum):
    """The kinds of messages. Numbers are unsigned 32-bit integers, times 64-bit floats."""

    FRAMES = 1
    """To the engine. A slot for each frame that is new in its ring, with `URGENT` added where it should not wait."""
    OPEN = 2
    """To the engine: a session's number, and how long it may wait for a slot, in seconds."""
    CLOSE = 3
    """To the engine: the number of a session that has ended."""
    OPERATION = 4
    """To the engine: a slot, and an operation to run before its next frame: see `SlotCommand`."""
    DONE = 5
    """From the engine, once per step: the slots whose next output is in its ring."""
    ADMITTED = 6
    """From the engine: a session's number and its slot."""
    REFUSED = 7
    """From the engine: a session's number, a `Refusal`, and how many wait."""
    POSITIONS = 8
    """From the engine: pairs of a waiting session's number and its place in the queue, from 1."""


URGENT = 1 << 31
_COMMAND = struct.Struct("<IIq")


@dataclass(frozen=True, slots=True)
class SlotCommand:
    """An operation on a slot.

    Args:
        operation: What to do; None replaces the last text token.
        number: The number of the first frame, for a reset; the token to replace it with.
    """

    operation: SlotOp | None
    number: int = 0

    def pack(self, slot: int) -> bytes:
        """Return the payload of an `OPERATION` message."""
        return _COMMAND.pack(slot, 0 if self.operation is None else self.operation.value, self.number)

    @classmethod
    def unpack(cls, payload: bytes) -> tuple[int, SlotCommand]:
        """Return the slot and the operation of a payload. Raises `struct.error` and `ValueError`."""
        slot, operation, number = _COMMAND.unpack(payload)
        return slot, cls(SlotOp(operation) if operation else None, number)


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
