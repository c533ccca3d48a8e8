"""A bounded queue of messages for one client."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from slipstream.connections.limits import Limits
from slipstream.dialects.protocol import Close, CloseCode, Message


class Socket(Protocol):
    """One connection, as a stream sees it."""

    @property
    def congested(self) -> bool:
        """Whether the client reads too slowly, so that messages would accumulate."""
        ...

    @property
    def behind(self) -> bool:
        """Whether the server has data of the client that it has not read yet."""
        ...

    @property
    def gone(self) -> bool:
        """Whether the client has closed the connection, as far as this is known before all its data are read."""
        ...

    @property
    def client_code(self) -> int:
        """The close code that the client sent, or 1006 if it sent none."""
        ...

    @property
    def sent_reason(self) -> str:
        """The reason of the close that the server sent."""
        ...

    def send(self, message: Message) -> None: ...

    def ping(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self, close: Close) -> None: ...

    def cut_off_later(self) -> None: ...

    def abort(self) -> None: ...


class Sink(Protocol):
    """What an outbox writes to."""

    @property
    def congested(self) -> bool: ...

    def send(self, message: Message) -> None: ...

    def close(self, close: Close) -> None: ...


class Outbox:
    """Sends a session's messages to one socket; a `Close` is the last one.

    For a client that reads too slowly, it first drops messages that may be dropped (`dropped` counts them), then ends
    the connection (`overflowed`).
    """

    def __init__(self, socket: Sink, limits: Limits) -> None:
        self._socket = socket
        self._limits = limits
        self._unsent: deque[Message] = deque()
        self.ending: Close | None = None
        """The close of the connection, sent or not."""
        self.dropped = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._unsent)

    def put(self, message: Message, droppable: bool = False) -> None:
        """Send a message, keep it for later, or drop it, as the limits require. After `close`, do nothing."""
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
            self.close(Close(CloseCode.TOO_SLOW, f"{unsent} messages are unread: the client is too slow"))
        else:
            self._unsent.append(message)

    def close(self, close: Close) -> None:
        """Close the connection after the queued messages. A second call does nothing."""
        if self.ending is None:
            self.ending = close
            self.send_on()

    def send_on(self) -> None:
        """Send queued messages, as far as the client reads."""
        while self._unsent and not self._socket.congested:
            self._socket.send(self._unsent.popleft())
        if self.ending is not None and not self._unsent and not self._socket.congested:
            self._socket.close(self.ending)
