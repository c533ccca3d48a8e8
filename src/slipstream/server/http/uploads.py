"""Whole files, one POST request each: the places and threads that all upload dialects share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from slipstream.engine.engine import Engine
from slipstream.server.http.upload import Shared, Upload
from slipstream.server.limits import Limits
from slipstream.server.metrics import Metrics
from slipstream.server.models import Models, StreamInfo, StreamRequest
from slipstream.server.streams.registry import StreamRegistry
from slipstream.server.uploads.protocol import UploadDialect, unavailable

if TYPE_CHECKING:
    from slipstream.server.tracing import Tracer


class Uploads:
    """Serves uploads in any dialect.

    At most `limits.uploads` requests run in parallel, each with two threads of a separate pool: one writes the body,
    one decodes it. Others are refused with 503 and `Retry-After`, before their body is read.

    Args:
        engines: The engine of each model.
        models: What the streams of each model have in common.
        tracer: Begins a trace for each upload; None writes no traces.
    """

    def __init__(
        self,
        engines: Models[Engine],
        models: Models[StreamInfo],
        registry: StreamRegistry,
        limits: Limits,
        metrics: Metrics,
        tracer: Tracer | None = None,
    ) -> None:
        pool = ThreadPoolExecutor(2 * limits.uploads, thread_name_prefix="slipstream-upload")
        self._pool, self._shared = pool, Shared(engines, models, registry, limits, metrics, pool, tracer)
        self._open = 0

    def endpoint(self, dialect: type[UploadDialect]) -> ASGIApp:
        """Return the ASGI endpoint of a dialect."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if self._shared.registry.draining:
                raise unavailable("the server is about to stop")
            if self._open >= self._shared.limits.uploads:
                raise unavailable(f"{self._open} uploads are in progress, the limit of this server")
            request = Request(scope, receive)
            opened = dialect(
                StreamRequest(self._shared.models, request.query_params.multi_items(), request.headers, scope["id"])
            )
            self._open += 1
            upload = Upload(request, send, opened, self._shared)
            try:
                await upload.run()
            finally:
                self._open -= 1
            await upload.answer()

        return serve

    def close(self) -> None:
        """Let the threads of the pool end."""
        self._pool.shutdown(wait=False)
