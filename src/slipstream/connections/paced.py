"""What WebSockets and TCP connections have in common: limits on speed, fair turns, and waiting for the listener."""

from __future__ import annotations

import asyncio
import select
import sys
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, cast

from slipstream.connections.fairness import TURN_SECONDS, RoundRobin
from slipstream.connections.limits import Limits, Pace
from slipstream.dialects.protocol import Close, CloseCode, Message

DIRECT_SHARE = 0.02
"""Share of the event loop's time that a connection may take directly when its data arrive; beyond it, it takes turns. A
stream in real time needs a tenth of that."""
PACE_SECONDS = 0.02
"""Least time that a client which is too fast waits, so that it does not need a timer per frame."""
LOST = 1006
"""The close code of a connection that ended without a close frame (RFC 6455, section 7.4.1)."""
CLOSE_SECONDS = 5.0
"""How long a client may take to read the last messages and answer the close, before the connection is aborted."""


class Listener(Protocol):
    """Receives the events of a connection, in the event loop."""

    def opened(self) -> None:
        """The connection is open."""
        ...

    def receive(self, message: Message) -> None:
        """A message came. Not called while the connection is paused."""
        ...

    def writable(self) -> None:
        """The connection is no longer congested."""
        ...

    def closed(self, code: int | None) -> None:
        """The connection has ended. `code`: the server's close code; None if the client or the network ended it."""
        ...


class PacedConnection(asyncio.Protocol):
    """One connection, whose input is processed one part at a time.

    It counts bytes as they arrive, and processes them as far as the limits and the other connections allow. Until then
    it reads no more, so that the client waits.

    Args:
        limits: The limits of the connection.
        turns: Schedules connections that have more work than fits in one turn.
        connections: The connections that uvicorn waits for before it stops; it calls `shutdown` on each.
        lost: Called when the connection is over.
    """

    _gone_events = getattr(select, "POLLRDHUP", 0)
    """What `gone` looks for, in addition to errors and resets."""

    def __init__(self, limits: Limits, turns: RoundRobin, connections: set[Any], lost: Callable[[], None]) -> None:
        self._limits = limits
        self._turns = turns
        self._connections = connections
        self._lost = lost
        self._listener: Listener | None = None
        self._transport: asyncio.Transport
        now = time.monotonic()
        self._byte_pace = Pace(limits.bytes_per_second, now)
        self._direct_pace, self._direct_from = Pace(DIRECT_SHARE, now, burst=DIRECT_SHARE), now
        self._paused = self._reading_paused = False
        self._pace_timer: asyncio.TimerHandle | None = None
        self._last_call: asyncio.TimerHandle | None = None
        self.congested = False
        """Whether the client reads too slowly, so that messages would accumulate here."""

    # -------------------------------------------------------------------------------------- for each kind of connection

    @abstractmethod
    def close(self, close: Close) -> None:
        """Close the connection, and give the client time to read the last messages."""

    @abstractmethod
    def _keep(self, data: bytes) -> None:
        """Keep bytes that have arrived."""

    @abstractmethod
    def _process_part(self) -> bool:
        """Process the next part of the bytes. Returns False if there is none."""

    # --------------------------------------------------------------------------------------- what the listener calls

    def cut_off_later(self) -> None:
        """Abort the connection after `CLOSE_SECONDS`, also with unsent messages."""
        if self._last_call is None:
            self._last_call = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._transport.abort)

    def pause(self) -> None:
        """Pass no more messages to the listener, so that the client waits."""
        self._paused = True

    def resume(self) -> None:
        """Continue reading. Does nothing if the connection is not paused."""
        if self._paused:
            self._paused = False
            self._turns.add(self)

    @property
    def behind(self) -> bool:
        """Whether the server has data of the client that it has not read yet."""
        return self._held or self in self._turns

    @property
    def gone(self) -> bool:
        """Whether the client has closed the connection, which is not noticed otherwise while the socket is not read.

        Only Linux reports this before all data of the client are read.
        """
        if sys.platform != "linux" or self._transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), self._gone_events)
        return bool(poll.poll(0))

    def abort(self) -> None:
        """Close the connection immediately."""
        self._transport.abort()

    # ------------------------------------------------------------------------------ what uvicorn and its transport call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # not a subclass in uvloop
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._keep_pace(self._byte_pace.delay(now, len(data)))
        self._keep(data)
        if self not in self._turns and (now < self._direct_from or self._work_directly(now)):
            self._turns.add(self)
        if (self._held or self in self._turns) and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def work(self, until: float) -> bool:
        """Process bytes, as far as the limits and the listener allow."""
        while not self._held and not self._transport.is_closing():
            if not self._process_part():
                if self._reading_paused:
                    self._reading_paused = False
                    self._transport.resume_reading()
                break
            if time.perf_counter() > until:
                return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        self._lost()
        self._turns.remove(self)
        for timer in (self._last_call, self._pace_timer):
            if timer is not None:
                timer.cancel()
        self._end(None)

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        if self._listener is not None:
            self._listener.writable()

    def shutdown(self) -> None:
        """Close for uvicorn's stop. A connection that is closing already keeps its `CLOSE_SECONDS`."""
        self.close(Close(CloseCode.RESTARTING))

    # ------------------------------------------------------------------------------------------------------ in detail

    def _end(self, code: int | None) -> None:
        """Report to the listener, if any, that the connection has ended."""
        listener, self._listener = self._listener, None
        if self._paused and not self._transport.is_closing():
            self.resume()  # what ends the connection follows the client's unread data
        if listener is not None:
            listener.closed(code)

    def _work_directly(self, now: float) -> bool:
        """Take a turn now. Returns whether there is more to do."""
        began = time.perf_counter()
        more = self.work(began + TURN_SECONDS)
        self._direct_from = now + self._direct_pace.delay(now, time.perf_counter() - began)
        return more

    @property
    def _held(self) -> bool:
        """Whether bytes wait for the listener, or for the pace."""
        return self._paused or self._pace_timer is not None

    def _keep_pace(self, delay: float) -> None:
        """Process nothing for `delay` seconds."""
        if delay > 0 and self._pace_timer is None:
            self._pace_timer = asyncio.get_running_loop().call_later(max(delay, PACE_SECONDS), self._go_on)

    def _go_on(self) -> None:
        self._pace_timer = None
        self._turns.add(self)
