"""The server's addresses: both wires, whole files, what it is, how it is, and the page."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from slipstream import __version__
from slipstream.engine.engine import Engine
from slipstream.server.access import Access
from slipstream.server.hub import Hub
from slipstream.server.kyutai import KyutaiWire
from slipstream.server.limits import Limits
from slipstream.server.metrics import Metrics
from slipstream.server.plain import PlainWire, parse_format
from slipstream.server.protocol import ProtocolError, StreamInfo, Wire
from slipstream.server.stream import LiveStream
from slipstream.server.uploads import Uploads
from slipstream.server.websocket import Refused, WebSocket

KYUTAI_PATH = "/api/asr-streaming"
PLAIN_PATH = "/v1/stream"


@dataclass(frozen=True, slots=True)
class Service:
    """All that a server needs. `queue_seconds`: how long a stream may wait for a slot; 0 refuses it at once."""

    engine: Engine
    model: str
    access: Access
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    queue_seconds: float = 0.0
    kyutai_path: str = KYUTAI_PATH

    @property
    def info(self) -> StreamInfo:
        format = self.engine.format
        return StreamInfo(self.model, format.delay_frames / format.frame_rate, 1 / format.frame_rate)


class Streams:
    """The WebSocket addresses: gives each connection a stream in its dialect, which joins `hub`, or refuses it."""

    def __init__(self, service: Service, hub: Hub) -> None:
        self._service, self._hub = service, hub
        self._wires: dict[str, Callable[[HTTPConnection], Wire]] = {
            service.kyutai_path: lambda request: KyutaiWire(),
            PLAIN_PATH: lambda request: PlainWire(parse_format(request.query_params), service.info),
        }

    def accept(self, request: HTTPConnection, socket: WebSocket) -> LiveStream:
        """The stream of a new connection. Raises `Refused`."""
        try:
            wire = self._wire(request)
        except Refused as refused:
            self._service.metrics.refusals.labels(refused.status).inc()
            raise
        return LiveStream(
            wire,
            socket,
            engine=self._service.engine,
            hub=self._hub,
            limits=self._service.limits,
            metrics=self._service.metrics,
            queue_seconds=self._service.queue_seconds,
        )

    def _wire(self, request: HTTPConnection) -> Wire:
        if self._hub.draining:
            raise Refused(503, "the server is about to stop")
        if (refusal := self._service.access.refusal(request)) is not None:
            raise Refused(*refusal)
        if (make_wire := self._wires.get(request.scope["path"])) is None:
            raise Refused(404, f"streams are at {' and '.join(self._wires)}")
        try:
            return make_wire(request)
        except ProtocolError as error:
            raise Refused(400, str(error)) from error


def create_app(service: Service, hub: Hub) -> Starlette:
    """The ASGI application of `service`: its HTTP addresses, and the care for the streams of `hub`."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(hub.run())
        yield
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
        uploads.close()

    uploads = Uploads(service.engine, hub, service.access, service.limits, service.metrics)
    handlers = _Handlers(service, hub)
    routes: list[BaseRoute] = [
        Route(service.kyutai_path, uploads, methods=["POST"]),
        Route("/api/build_info", handlers.build_info),
        Route("/api/modules_info", handlers.modules_info),
        Route("/v1/info", handlers.info),
        Route("/healthz", handlers.health),
        Route("/readyz", handlers.readiness),
        Route("/metrics", handlers.metrics),
        Mount("/", _Page(directory=Path(__file__).parent / "page", html=True)),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(service.access.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
    )
    return Starlette(routes=routes, middleware=[cors], lifespan=lifespan)


class _Handlers:
    """The HTTP addresses."""

    def __init__(self, service: Service, hub: Hub) -> None:
        self._service, self._hub = service, hub

    async def build_info(self, request: Request) -> Response:
        return JSONResponse(
            {
                "name": "slipstream",
                "version": __version__,
                "git_describe": f"slipstream-{__version__}",
                "python_version": platform.python_version(),
                "platform": platform.platform(),
            }
        )

    async def modules_info(self, request: Request) -> Response:
        engine = self._service.engine
        module = {
            "type": "batched_asr",
            "path": self._service.kyutai_path,
            "lm": self._service.model,
            "audio_tokenizer": self._service.model,
            "used_slots": str(engine.active),
            "total_slots": str(engine.slots),
        }
        return JSONResponse([module])

    async def info(self, request: Request) -> Response:
        info = self._service.info
        needs_key = self._service.access.keys is not None
        return JSONResponse({"model": info.model, "delay": info.delay_seconds, "needs_key": needs_key})

    async def health(self, request: Request) -> Response:
        """Whether the engine lives: 503 asks for a restart."""
        return _plain_status(self._service.engine.alive)

    async def readiness(self, request: Request) -> Response:
        """Whether new streams are taken: 503 sends them elsewhere."""
        return _plain_status(self._service.engine.alive and not self._hub.draining)

    async def metrics(self, request: Request) -> Response:
        metrics = self._service.metrics
        metrics.queued.set(self._service.engine.waiting)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _plain_status(good: bool) -> Response:
    return PlainTextResponse("ok" if good else "no", 200 if good else 503)


class _Page(StaticFiles):
    """The page and its parts, which may load nothing from elsewhere."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_PAGE_HEADERS]
            await send(message)

        await super().__call__(scope, receive, send_guarded)


_PAGE_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),  # a key may stand in the address
    (b"x-content-type-options", b"nosniff"),
]
