"""WebSockets that another ASGI server has accepted, such as Ray Serve's proxy."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import MutableMapping
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from slipstream.connections.access import SUBPROTOCOLS, Refused
from slipstream.connections.http import new_id
from slipstream.connections.limits import Limits
from slipstream.connections.paced import CLOSE_SECONDS, LOST
from slipstream.connections.websocket import Accept, Listener
from slipstream.dialects.protocol import Close, CloseCode, Message

CONGESTED_BYTES = 1 << 16
"""Unsent bytes from which on a client reads too slowly."""
NO_CODE = 1005
"""The close code of a close frame without one (RFC 6455, section 7.4.1)."""


class AsgiWebSocket:
    """One WebSocket of an ASGI server: the `Socket` of a stream.

    Args:
        accept: Makes the listener of the connection, or refuses it.
        limits: The limits of the connection; the ASGI server applies its own to speed and frames.
    """

    def __init__(self, accept: Accept, limits: Limits, scope: Scope, receive: Receive, send: Send) -> None:
        self._accept, self._limits = accept, limits
        self._scope: dict[str, Any] = {**scope, "id": new_id()}
        self._receive, self._send = receive, send
        self._listener: Listener | None = None
        self._unsent: deque[Message] = deque()
        self._unsent_bytes = 0
        self._was_congested = False
        self._close: Close | None = None
        self._changed = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._reader: asyncio.Task[None] | None = None
        self.client_code, self.sent_reason = LOST, ""

    async def run(self) -> None:
        """Serve the connection to its end."""
        if (await self._receive())["type"] != "websocket.connect":
            return
        try:
            self._listener = self._accept(HTTPConnection(self._scope), self)
        except Refused as refused:
            await self._refuse(refused)
            return
        chosen = next((name for name in self._scope.get("subprotocols", ()) if name in SUBPROTOCOLS), None)
        headers = [(name.encode(), value.encode()) for name, value in self._listener.headers.items()]
        await self._send({"type": "websocket.accept", "subprotocol": chosen, "headers": headers})
        self._reader = asyncio.create_task(self._read())
        self._listener.opened()
        try:
            await self._write()
        finally:
            self._reader.cancel()
            self._end(None)

    async def _refuse(self, refused: Refused) -> None:
        if "websocket.http.response" in self._scope.get("extensions", {}):
            headers = [(name.encode(), value.encode()) for name, value in refused.headers.items()]
            start = {"type": "websocket.http.response.start", "status": refused.status, "headers": headers}
            await self._send(start)
            await self._send({"type": "websocket.http.response.body", "body": refused.reason.encode()})
        else:
            code = int(CloseCode.TRY_LATER if refused.status == 503 else CloseCode.POLICY_VIOLATION)
            await self._send({"type": "websocket.close", "code": code, "reason": refused.reason})

    async def _read(self) -> None:
        while True:
            await self._reading.wait()
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self.client_code = _close_code(message)
                self._changed.set()
                self._end(None)
                return
            if self._listener is None:
                continue  # after the end
            data: Message = message.get("bytes") or message.get("text") or b""
            long = isinstance(data, bytes) or self._listener.long_text
            if len(data) > (self._limits.message_bytes if long else self._limits.text_bytes):
                self.close(Close(CloseCode.TOO_BIG, "the message is too large"))
            else:
                self._listener.receive(data)

    async def _write(self) -> None:
        """Send messages until the close or the end of the connection."""
        while True:
            while self._unsent:
                message = self._unsent.popleft()
                self._unsent_bytes -= len(message)
                kind = "text" if isinstance(message, str) else "bytes"
                await self._send({"type": "websocket.send", kind: message})
            if self._close is not None:
                await self._send(
                    {"type": "websocket.close", "code": int(self._close.code), "reason": self._close.reason}
                )
                assert self._reader is not None
                await asyncio.wait({self._reader}, timeout=CLOSE_SECONDS)  # for the client's answer
                return
            if self._listener is None:
                return
            if self._was_congested:
                self._was_congested = False
                self._listener.writable()
            self._changed.clear()
            if not self._unsent and self._close is None:
                await self._changed.wait()

    def _end(self, code: int | None) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.closed(code)

    # --------------------------------------------------------------------------------------- what the stream calls

    @property
    def congested(self) -> bool:
        """Whether the client reads too slowly, so that messages would accumulate here."""
        self._was_congested |= self._unsent_bytes > CONGESTED_BYTES
        return self._unsent_bytes > CONGESTED_BYTES

    @property
    def behind(self) -> bool:
        """Whether data wait to be read: unknown here."""
        return False

    @property
    def gone(self) -> bool:
        """Whether the client has left: the reader reports it immediately."""
        return False

    def send(self, message: Message) -> None:
        """Send a message. Does nothing after the close."""
        if self._close is None:
            self._unsent.append(message)
            self._unsent_bytes += len(message)
            self._changed.set()

    def ping(self) -> None:
        """Do nothing: the ASGI server pings."""

    def pause(self) -> None:
        """Read no more messages."""
        self._reading.clear()

    def resume(self) -> None:
        """Read messages again."""
        self._reading.set()

    def close(self, close: Close) -> None:
        """Send the close after what was sent, and give the client time to answer it."""
        if self._close is None:
            self._close, self.sent_reason = close, close.reason
            self._changed.set()
            self._reading.set()
        self._end(int(close.code))

    def cut_off_later(self) -> None:
        """Do nothing: `run` waits for the client only for a short time after a close."""

    def abort(self) -> None:
        """End the connection without the messages that are not sent."""
        self._unsent.clear()
        self._unsent_bytes = 0
        self.close(Close(CloseCode.TRY_LATER))


def _close_code(message: MutableMapping[str, Any]) -> int:
    """The client's close code, or `LOST` if the connection ended without a close frame."""
    code: int = message.get("code") or LOST
    # uvicorn reports a lost connection as 1005, without the reason that a close frame has.
    return LOST if code == NO_CODE and "reason" not in message else code
