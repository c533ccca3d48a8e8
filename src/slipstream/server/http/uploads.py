"""Whole files, one POST request each: the places and threads that all upload dialects share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from slipstream.connections.limits import Limits
from slipstream.connections.tally import Tally
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.engine.live import AnyEngine
from slipstream.server.http.upload import Shared, Upload
from slipstream.server.metrics import Metrics
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
        tally: Counts the uploads.
        tracer: Begins a trace for each upload; None writes no traces.
    """

    def __init__(
        self,
        engines: Models[AnyEngine],
        models: Models[StreamInfo],
        registry: StreamRegistry,
        limits: Limits,
        metrics: Metrics,
        tally: Tally,
        tracer: Tracer | None = None,
    ) -> None:
        pool = ThreadPoolExecutor(2 * limits.uploads, thread_name_prefix="slipstream-upload")
        self._pool, self._shared = pool, Shared(engines, models, registry, limits, metrics, pool, tracer)
        self._tally = tally

    def endpoint(self, dialect: type[UploadDialect]) -> ASGIApp:
        """Return the ASGI endpoint of a dialect."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if self._shared.registry.draining:
                raise unavailable("the server is about to stop")
            if full := self._tally.enter([(_UPLOADS, self._shared.limits.uploads)]):
                raise unavailable(f"{full[1]} uploads are in progress, the limit of this server")
            try:
                upload = await self._run(dialect, scope, receive, send)
            finally:
                self._tally.leave(_UPLOADS)
            await upload.answer()

        return serve

    def close(self) -> None:
        """Let the threads of the pool end."""
        self._pool.shutdown(wait=False)

    async def _run(self, dialect: type[UploadDialect], scope: Scope, receive: Receive, send: Send) -> Upload:
        request = Request(scope, receive)
        opened = dialect(
            StreamRequest(self._shared.models, request.query_params.multi_items(), request.headers, scope["id"])
        )
        upload = Upload(request, send, opened, self._shared)
        await upload.run()
        return upload


_UPLOADS = "uploads"
