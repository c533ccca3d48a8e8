"""What happens to every HTTP request: its ID, the limits on its head, the access check, and what a failure returns."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slipstream.connections.access import ID_HEADER, Access, Client, Refused
from slipstream.connections.http import head_fits, new_id
from slipstream.connections.paced import CLOSE_SECONDS
from slipstream.errors import EngineError
from slipstream.server.metrics import Metrics
from slipstream.server.streams.stream import INTERNAL_ERROR

Refuse: TypeAlias = Callable[[Refused], Response]
"""Returns the response for a refusal, in the form of a protocol."""

logger = logging.getLogger(__name__)


class Requests:
    """ASGI middleware: assigns an ID to every HTTP request, refuses a head that is too large, and logs failures."""

    def __init__(self, app: ASGIApp, header_bytes: int) -> None:
        self.app, self._header_bytes = app, header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["id"] = new_id()
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        body = _Body(receive, over=not has_body)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (ID_HEADER.encode(), scope["id"].encode())]
            elif not message.get("more_body") and not body.over:
                await send({**message, "more_body": True})
                await body.discard()
                message = {"type": "http.response.body"}
            await send(message)

        if not head_fits(scope, self._header_bytes):
            await PlainTextResponse("the request's headers are too large", 431)(scope, body, send_with_id)
            return
        try:
            await self.app(scope, body, send_with_id)
        except Exception:  # Starlette has sent status 500
            logger.exception("request failed", extra={"id": scope["id"], "path": scope["path"]})


class _Body:
    """A request's `receive`, which can discard the rest of the body.

    Closing a connection while its client still sends makes the kernel reset it, and the client loses the response.
    """

    def __init__(self, receive: Receive, *, over: bool) -> None:
        self._receive, self.over = receive, over

    async def __call__(self) -> Message:
        message = await self._receive()
        self.over |= not message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Read the rest of the body for at most `CLOSE_SECONDS`."""
        reading = asyncio.ensure_future(self._read())
        await asyncio.wait({reading}, timeout=CLOSE_SECONDS)
        reading.cancel()

    async def _read(self) -> None:
        while not self.over:
            await self()


class Guarded:
    """ASGI endpoint behind the access check; it finds its `Client` in `scope["sender"]`.

    Args:
        refuse: Returns the response for a refusal, by the check or by the endpoint.
        counted: Whether a request counts as one of the key's streams.
        secrets: Whether client secrets are accepted, too.
    """

    def __init__(
        self,
        endpoint: ASGIApp,
        access: Access,
        refuse: Refuse | None = None,
        *,
        counted: bool = False,
        secrets: bool = False,
    ) -> None:
        self._endpoint, self._access, self._counted, self._secrets = endpoint, access, counted, secrets
        self.refuse = refuse or plain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["refuse"] = self.refuse
        client = self._access.check(Request(scope), secrets=self._secrets)
        scope["sender"] = client
        if not self._counted:
            await self._endpoint(scope, receive, send)
            return
        self._access.enter(client)
        try:
            await self._endpoint(scope, receive, send)
        finally:
            self._access.leave(client)


def failure_handlers(metrics: Metrics) -> dict[Any, Any]:
    """Return Starlette's exception handlers for refusals and for a model that failed."""

    async def refused(request: Request, error: Refused) -> Response:
        metrics.refuse(error.status, error.reason, scope_client(request.scope))
        return _response(request, error)

    async def engine_failed(request: Request, error: EngineError) -> Response:
        return _response(request, Refused(503, INTERNAL_ERROR, {"retry-after": "10"}))

    return {Refused: refused, EngineError: engine_failed}


def _response(request: Request, refused: Refused) -> Response:
    response: Response = request.scope.get("refuse", plain)(refused)
    return response


def plain(refused: Refused) -> Response:
    """Return the reason as plain text."""
    return PlainTextResponse(refused.reason, refused.status, refused.headers)


def scope_client(scope: Scope) -> Client:
    """Return the client of a request for the log, whether or not it passed the access check."""
    return scope.get("sender") or Client(scope.get("id", ""), (scope.get("client") or ("",))[0])
