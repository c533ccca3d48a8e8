"""The open streams and uploads of a server. Their events pass from the engine's thread to the event loop here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from slipstream.connections.fairness import RoundRobin
from slipstream.connections.limits import Limits
from slipstream.dialects.protocol import Close, CloseCode
from slipstream.server.streams.topics import Topics

SWEEP_SECONDS = 0.5
logger = logging.getLogger(__name__)
_STOPPING = Close(CloseCode.RESTARTING, "the server is about to stop")


class Member(Protocol):
    """A stream or an upload. The registry calls it in the event loop."""

    def deliver(self) -> None:
        """Take the new events of the session."""
        ...

    def sweep(self, now: float) -> None:
        """Apply the time limits, and report the place in the queue. Called every `SWEEP_SECONDS`."""
        ...

    def end(self, close: Close) -> None:
        """Transcribe the audio received so far, then close."""
        ...


class StreamRegistry:
    """Wakes the event loop once per step for all sessions, applies the time limits, and drains connections.

    `turns` schedules connections that have more work than fits in one turn; `topics` passes messages between them.
    """

    def __init__(self, limits: Limits, topics: Topics | None = None) -> None:
        self._limits = limits
        self.topics = topics or Topics()
        self._members: set[Member] = set()
        self._woken: deque[Member] = deque()
        self._scheduled = False
        self.draining = False
        self.turns = RoundRobin()

    def __len__(self) -> int:
        return len(self._members)

    def join(self, member: Member) -> None:
        """Add a member."""
        self._members.add(member)
        if self.draining:  # it was accepted just before
            member.end(_STOPPING)

    def leave(self, member: Member) -> None:
        """Remove a member."""
        self._members.discard(member)
        self.topics.leave(member)

    def waker(self, member: Member) -> Callable[[], None]:
        """Return the function that a session calls, in any thread, when it has new events."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            self._woken.append(member)
            if not self._scheduled:  # two threads may both schedule: the second delivery finds no events
                self._scheduled = True
                loop.call_soon_threadsafe(self._deliver)

        return wake

    async def run(self) -> None:
        """Sweep all connections, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._sweep()  # in a separate function, so that no member is referenced until the next time

    async def drain(self) -> bool:
        """Finish all connections. Returns whether they ended within `drain_seconds`."""
        self.draining = True
        for member in list(self._members):
            if not self.topics.follows(member):  # others end with what they follow
                member.end(_STOPPING)
        deadline = time.monotonic() + self._limits.drain_seconds
        while (self._members or self.topics.busy) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return not self._members

    def _sweep(self) -> None:
        now = time.monotonic()
        for member in list(self._members):
            _guarded(member.sweep, now)

    def _deliver(self) -> None:
        self._scheduled = False
        for _ in range(len(self._woken)):  # those that are woken meanwhile come after what else is to do
            _guarded(self._woken.popleft().deliver)


def _guarded(call: Callable[..., None], *arguments: float) -> None:
    """Call a member; a defect in one must not stop the others."""
    try:
        call(*arguments)
    except Exception:
        logger.exception("a connection failed")
