"""Messages on their way to one client, bounded however slowly it reads."""

from __future__ import annotations

import asyncio
from collections import deque

from slipstream.server.limits import Limits
from slipstream.server.protocol import Close, CloseCode, Message


class Outbox:
    """A queue between a session's events and one socket; a `Close` is the last thing in it.

    A client that reads too slowly first misses what may be missed (`dropped` counts it), then is given up
    (`overflowed`).
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._items: deque[Message | Close] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self.dropped = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, message: Message, droppable: bool = False) -> None:
        """Add a message, or drop it where the bounds say so, or because the end has been added."""
        unsent = len(self._items)
        if self._closed:
            return
        if droppable and unsent >= self._limits.droppable_messages:
            self.dropped += 1
        elif unsent >= self._limits.unsent_messages:
            self.overflowed = True
            self._items.clear()
            self.close(Close(CloseCode.TOO_SLOW, f"{unsent} messages were not read in time"))
        else:
            self._append(message)

    def close(self, close: Close) -> None:
        """Add the end, once."""
        if not self._closed:
            self._closed = True
            self._append(close)

    async def get(self) -> Message | Close:
        """Wait for what goes out next."""
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._items.popleft()

    def _append(self, item: Message | Close) -> None:
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
