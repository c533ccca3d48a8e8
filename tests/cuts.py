"""A proxy that cuts connections, for tests of clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from types import TracebackType


class CuttingProxy:
    """Forwards TCP connections to `target`, and resets the first ones after these numbers of bytes from the server.

    With `stall`, it keeps them open and forwards no more of these bytes. `cut` resets those that are open.
    `connections` counts all so far.
    """

    def __init__(self, target: str, cuts: Sequence[int], stall: bool = False) -> None:
        self._stall = stall
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._cuts = list(cuts)
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""
        self.connections = 0

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """Reset all open connections."""
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        limit = self._cuts.pop(0) if self._cuts else None
        with contextlib.suppress(OSError, asyncio.CancelledError):
            up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
            ways = [
                asyncio.create_task(_copy(reader, up_writer, None)),
                asyncio.create_task(_copy(up_reader, writer, limit, self._stall)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)
                for end in (writer, up_writer):
                    end.transport.abort()
        self._tasks.discard(task)


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None, stall: bool = False
) -> None:
    count = 0
    with contextlib.suppress(OSError):
        while piece := await reader.read(1 << 12):
            if limit is not None and count + len(piece) > limit:
                if stall:
                    await asyncio.Event().wait()
                return
            count += len(piece)
            writer.write(piece)
            await writer.drain()
        await asyncio.sleep(0)
