"""Server-sent events: a response whose parts are sent as they come."""

from __future__ import annotations

import asyncio

from starlette.types import Send

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class EventSender:
    """Sends a response of server-sent events in a separate task, however slowly the client reads.

    The response begins immediately. What is put waits in memory: a transcript is small.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    def put(self, data: bytes) -> None:
        """Send one event with this data, which has no line breaks."""
        self._waiting.put_nowait(data)

    async def finish(self) -> None:
        """End the response after what was put."""
        self._waiting.put_nowait(None)
        await self._task

    def cancel(self) -> None:
        """Send nothing more."""
        self._task.cancel()

    async def _run(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        while (data := await self._waiting.get()) is not None:
            await self._send({"type": "http.response.body", "body": b"data: %b\n\n" % data, "more_body": True})
        await self._send({"type": "http.response.body"})
