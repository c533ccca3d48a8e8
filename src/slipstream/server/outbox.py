"""Messages on their way to one client, bounded however slowly it reads."""

from __future__ import annotations

import asyncio
from collections import deque

from slipstream.server.limits import Limits
from slipstream.server.protocol import Message


class Outbox:
    """A queue between the engine's events and one socket.

    A client that reads too slowly first misses what may be missed, then is given up: `overflowed`.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._messages: deque[Message] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.dropped = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message, droppable: bool = False) -> None:
        """Add a message, or drop it where the bounds say so."""
        unread = len(self._messages)
        if droppable and unread >= self._limits.droppable_messages:
            self.dropped += 1
            return
        if unread >= self._limits.unsent_messages:
            self.overflowed = True
            self._messages.clear()
        if not self.overflowed:
            self._messages.append(message)
        self._wake()

    async def get(self) -> Message | None:
        """Wait for the next message. None once the box has overflowed."""
        while not self._messages:
            if self.overflowed:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._messages.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
