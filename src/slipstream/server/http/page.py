"""The web page and its parts."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from slipstream.connections.access import Refused


class Page(StaticFiles):
    """The page and its parts, which may load nothing from elsewhere."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_PAGE_HEADERS]
            await send(message)

        await super().__call__(scope, receive, send_guarded)

    async def get_response(self, path: str, scope: Scope) -> Response:
        if "\0" in path or not self.lookup_path(path)[1]:
            where = scope["path"].partition("\0")[0][:100]
            raise Refused(404, f"nothing is at {where}: /openapi.yaml and /asyncapi.yaml describe the addresses")
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"allow": "GET, HEAD"})
        return await super().get_response(path, scope)


_PAGE_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),  # the address may contain a key
    (b"x-content-type-options", b"nosniff"),
]
