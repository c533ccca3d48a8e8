"""What both tests with Wyoming's client read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wyoming.client import AsyncTcpClient
    from wyoming.event import Event


async def until(connected: AsyncTcpClient, kind: str) -> list[Event]:
    """All events up to the first of a type, itself included."""
    events: list[Event] = []
    while not events or events[-1].type != kind:
        event = await connected.read_event()
        assert event is not None, f"the connection ended after {[event.type for event in events]}"
        events.append(event)
    return events
