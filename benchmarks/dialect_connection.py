"""Connect a client of any dialect: by a WebSocket or TCP, and by a second WebSocket where the words come by that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from benchmarks.dialects import DialectClient, Message
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedOK


class Connection:
    """The connection of one client."""

    def __init__(self, client: DialectClient, to: ClientConnection | asyncio.StreamWriter) -> None:
        self._client, self._to = client, to
        self._from: ClientConnection | asyncio.StreamReader | None = None

    async def send(self, message: Message) -> None:
        """Send a message, or bytes on TCP."""
        if isinstance(self._to, asyncio.StreamWriter):
            assert isinstance(message, bytes)
            self._to.write(message)
            await self._to.drain()
        else:
            await self._to.send(message)

    async def words(self) -> list[str]:
        """Wait for a message, or bytes. Returns its final words. The client is done at the end of the connection."""
        try:
            if isinstance(self._from, asyncio.StreamReader):
                message: Message = await self._from.read(1 << 16)
            else:
                assert self._from is not None
                message = await self._from.recv()
        except ConnectionClosedOK:
            message = b""
        if message:
            return self._client.read(message)
        self._client.done |= self._client.ends_by_closing
        assert self._client.done, "the connection closed before the transcript was complete"
        return []


@contextlib.asynccontextmanager
async def connected(client: DialectClient, address: str, tcp_ports: Mapping[str, int]) -> AsyncIterator[Connection]:
    """Connect a client to a server.

    Args:
        client: A new one.
        address: Of the WebSockets, such as `ws://127.0.0.1:8080`.
        tcp_ports: Of the dialects on TCP, by their names.
    """

    def websocket(path: str) -> connect:
        return connect(address + path, additional_headers=client.headers, max_queue=None, compression=None)

    async with contextlib.AsyncExitStack() as stack:
        words = await stack.enter_async_context(websocket(client.words_path)) if client.words_path else None
        if client.tcp:
            reader, writer = await asyncio.open_connection("127.0.0.1", tcp_ports[client.tcp])
            stack.callback(writer.close)
            connection = Connection(client, writer)
            connection._from = words or reader
        else:
            socket = await stack.enter_async_context(websocket(client.path))
            connection = Connection(client, socket)
            connection._from = words or socket
        yield connection
