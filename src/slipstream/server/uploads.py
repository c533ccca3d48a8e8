"""Whole files: one POST request per recording, answered with its words."""

from __future__ import annotations

import tempfile
from typing import IO, Any, cast

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from slipstream.audio import decode
from slipstream.engine.engine import Engine
from slipstream.engine.session import SessionOptions
from slipstream.errors import AudioError, Overloaded
from slipstream.server.access import Access
from slipstream.server.limits import Limits
from slipstream.server.metrics import Metrics
from slipstream.types import Event, Word

UPLOAD_WAIT_SECONDS = 100.0
"""How long an upload waits for a slot, as in the reference."""
_SPOOL_BYTES = 4 << 20


class Uploads:
    """ASGI endpoint: a file in any format FFmpeg reads, its words as the reference's JSON."""

    def __init__(self, engine: Engine, access: Access, limits: Limits, metrics: Metrics) -> None:
        self._engine, self._access, self._limits, self._metrics = engine, access, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._respond(Request(scope, receive))
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        refusal = self._access.refusal(request)
        if refusal is not None:
            self._metrics.refusals.labels(refusal[0]).inc()
            return PlainTextResponse(refusal[1], refusal[0])
        with _Upload(max_size=_SPOOL_BYTES) as file:
            if not await _save(request, file, self._limits.upload_bytes):
                return PlainTextResponse(f"a file has at most {self._limits.upload_bytes} bytes", 413)
            try:
                events = await run_in_threadpool(self._transcribe, file)
            except AudioError as error:
                return PlainTextResponse(str(error), 422)
            except Overloaded as error:
                return PlainTextResponse(str(error), 503)
        return JSONResponse([message for event in events for message in _upload_messages(event)])

    def _transcribe(self, file: IO[bytes]) -> list[Event]:
        events: list[Event] = []
        with self._engine.open(SessionOptions(partials=False), wait=UPLOAD_WAIT_SECONDS) as session:
            for piece_CS in decode(cast(Any, file)):
                session.send(piece_CS[0])
                events += session.take()
            session.finish()
            events += session
        return events


class _Upload(tempfile.SpooledTemporaryFile[bytes]):
    """A request body for the decoder, which names it in its errors."""

    @property
    def name(self) -> str:
        return "the upload"


async def _save(request: Request, file: IO[bytes], limit: int) -> bool:
    """Write the body to `file`; False when it is larger than `limit`."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            return False
        await run_in_threadpool(file.write, chunk)
    file.seek(0)
    return True


def _upload_messages(event: Event) -> list[dict[str, Any]]:
    if not isinstance(event, Word):
        return []
    return [
        {"type": "Word", "text": event.text, "start_time": event.start},
        {"type": "EndWord", "stop_time": event.end},
    ]
