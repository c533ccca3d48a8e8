"""Messages on their way to one client, bounded however slowly it reads."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from slipstream.server.limits import Limits
from slipstream.server.protocol import Close, CloseCode, Message


class Socket(Protocol):
    """What an outbox writes to."""

    @property
    def congested(self) -> bool:
        """Whether the client reads too slowly: what is sent now would pile up."""
        ...

    def send(self, message: Message) -> None: ...

    def close(self, close: Close) -> None: ...


class Outbox:
    """Stands between a session's events and one socket; a `Close` is the last thing that goes through.

    A client that reads too slowly first misses what may be missed (`dropped` counts it), then is given up
    (`overflowed`).
    """

    def __init__(self, socket: Socket, limits: Limits) -> None:
        self._socket = socket
        self._limits = limits
        self._unsent: deque[Message] = deque()
        self.ending: Close | None = None
        """The end that was put, sent or not."""
        self.dropped = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._unsent)

    def put(self, message: Message, droppable: bool = False) -> None:
        """Send a message, or keep it for later, or drop it where the bounds say so, or because the end was put."""
        unsent = len(self._unsent)
        if self.ending is not None:
            return
        if not unsent and not self._socket.congested:
            self._socket.send(message)
        elif droppable and unsent >= self._limits.droppable_messages:
            self.dropped += 1
        elif unsent >= self._limits.unsent_messages:
            self.overflowed = True
            self._unsent.clear()
            self.close(Close(CloseCode.TOO_SLOW, f"{unsent} messages were not read in time"))
        else:
            self._unsent.append(message)

    def close(self, close: Close) -> None:
        """Put the end, once."""
        if self.ending is None:
            self.ending = close
            self.send_on()

    def send_on(self) -> None:
        """Send what was kept, as far as the client reads."""
        while self._unsent and not self._socket.congested:
            self._socket.send(self._unsent.popleft())
        if self.ending is not None and not self._unsent and not self._socket.congested:
            self._socket.close(self.ending)
