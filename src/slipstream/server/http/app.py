"""The server's routes: WebSocket streams, uploads, information, health, metrics, API descriptions and the page."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, request_response
from starlette.types import Receive, Scope, Send

from slipstream import __version__
from slipstream.connections.access import ID_HEADER, Access, Client, Refused
from slipstream.connections.http import new_id
from slipstream.connections.limits import Limits
from slipstream.connections.tcp import TcpConnection
from slipstream.connections.websocket import Listener
from slipstream.dialects import DIALECTS, OpenDialect
from slipstream.dialects.kyutai import PATH as KYUTAI_PATH
from slipstream.dialects.models import Models, StreamInfo, StreamRequest, UnknownModel
from slipstream.dialects.protocol import Dialect, ProtocolError, ResumableDialect
from slipstream.dialects.realtime import PATH as REALTIME_PATH
from slipstream.dialects.speech import find_speech_dialect
from slipstream.dialects.speech.protocol import SpeechDialect
from slipstream.engine.live import AnyEngine
from slipstream.server.http.client_secrets import secret_route
from slipstream.server.http.openai import openai_routes
from slipstream.server.http.page import Page
from slipstream.server.http.requests import Guarded, Refuse, Requests, failure_handlers, plain, scope_client
from slipstream.server.http.speech import speech_routes
from slipstream.server.http.uploads import Uploads
from slipstream.server.http.webrtc import Calls
from slipstream.server.metrics import Metrics, choose_format
from slipstream.server.speaking import AnySpeaker
from slipstream.server.streams.held import Claim, HeldStreams
from slipstream.server.streams.outbox import Socket
from slipstream.server.streams.registry import StreamRegistry
from slipstream.server.streams.speech import SpeechStreams
from slipstream.server.streams.stream import INTERNAL_ERROR, LiveStream
from slipstream.server.uploads import UPLOADS
from slipstream.server.uploads.protocol import WARNING_HEADER, UploadDialect

if TYPE_CHECKING:
    from slipstream.server.tracing import Tracer

logger = logging.getLogger(__name__)
_STOPPING = "the server is about to stop"


@dataclass(frozen=True)
class Service:
    """The parts of a server.

    Args:
        engines: The engine of each model.
        queue_seconds: How long a stream may wait for a slot; 0 refuses it immediately.
        flush_after_silence: After how many seconds of silence a stream's text is flushed; 0 for never.
        resume_seconds: How long a stream whose connection was lost keeps its slot for its client; 0 disables it.
        ready_when_free: Whether `/readyz` reports 503 while no slot is free.
        metrics_elsewhere: Whether `/metrics` has its own listener.
        webhooks: Addresses that calls may name as webhooks, each with all addresses below it.
        tracer: Begins a trace for each stream and upload; None writes no traces.
        page: Returns the text of `/metrics` and its media type, by the header `Accept`; None for this process alone.
        speaker: The model of text to speech; None offers none.
        elsewhere: Called with a request for a stream that another process may hold: see `HeldStreams`.
    """

    engines: Models[AnyEngine]
    access: Access
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    queue_seconds: float = 0.0
    flush_after_silence: float = 0.0
    resume_seconds: float = 0.0
    kyutai_path: str = KYUTAI_PATH
    ready_when_free: bool = False
    metrics_elsewhere: bool = False
    webhooks: Sequence[str] = ()
    tracer: Tracer | None = None
    page: Callable[[str], Awaitable[tuple[bytes, str]]] | None = None
    speaker: AnySpeaker | None = None
    elsewhere: Callable[[Claim], None] = lambda claim: None

    @property
    def engine(self) -> AnyEngine:
        """The engine of the default model."""
        return self.engines[None]

    @cached_property
    def models(self) -> Models[StreamInfo]:
        """What the streams of each model have in common."""
        infos = {name: _info(name, self.engines[name]) for name in self.engines}
        return Models(infos, self.engines.accept_any)

    @property
    def dialects(self) -> dict[str, OpenDialect]:
        """The dialect of each address."""
        return {self.kyutai_path if path == KYUTAI_PATH else path: opened for path, opened in DIALECTS.items()}

    @property
    def uploads(self) -> dict[str, type[UploadDialect]]:
        """The dialect of uploads at each address."""
        return {self.kyutai_path if path == KYUTAI_PATH else path: dialect for path, dialect in UPLOADS.items()}

    @property
    def trouble(self) -> str:
        """Why the process must be restarted; empty while the model works."""
        for engine in self.engines.values():
            if not engine.alive:
                return "the model has stopped"
            if (seconds := engine.step_seconds) > self.limits.step_seconds:
                limit = self.limits.step_seconds
                return f"the model's step has taken {seconds:.1f} s so far, over the limit of {limit:g} s"
        return ""


class Streams:
    """Opens a stream in its dialect for each WebSocket and TCP connection, or refuses it."""

    def __init__(self, service: Service, registry: StreamRegistry) -> None:
        self._service, self._registry = service, registry
        self._dialects = service.dialects
        self.held = HeldStreams(service.resume_seconds, registry, service.metrics, service.elsewhere)
        self._speech = SpeechStreams(service.speaker, registry, service.limits) if service.speaker else None

    def accept(self, request: HTTPConnection, socket: Socket) -> Listener:
        """Make the stream of a new connection. Raises `Refused`."""
        access, metrics = self._service.access, self._service.metrics
        query = request.query_params.multi_items()
        try:
            if self._speech is not None and (opened := find_speech_dialect(request.scope["path"])):
                self._refuse_while_draining()
                return self._speech.accept(opened, request, socket, access)
            dialect, client = self._open(request)
            resumable = dialect if isinstance(dialect, ResumableDialect) and self.held.seconds else None
            if resumable and (resumed := self.held.resume(query, client, socket)) is not None:
                return resumed
            access.enter(client)
        except Refused as refused:
            metrics.refuse(refused.status, refused.reason, scope_client(request.scope))
            raise
        except Exception as error:
            logger.exception("request failed", extra=scope_client(request.scope).log_fields)
            raise Refused(500, INTERNAL_ERROR) from error

        def new_stream(socket: Socket) -> LiveStream:
            return self._stream(dialect, socket, client, lambda: access.leave(client), request.headers)

        if resumable:
            return self.held.open(resumable, client, query, socket, new_stream)
        return new_stream(socket)

    def accept_tcp(self, open_dialect: OpenDialect, socket: TcpConnection, address: str) -> LiveStream:
        """Make the stream of a new TCP connection, in the dialect of its listener. Raises `Refused`."""
        client = Client(new_id(), address)
        if self._registry.draining:
            self._service.metrics.refuse(503, _STOPPING, client)
            raise Refused(503, _STOPPING)
        speech = self._speech
        info = speech.info if speech else None
        dialect = open_dialect(StreamRequest(self._service.models, id=client.id, speech=info))
        speak = partial(speech.follow, socket, client) if speech else None
        return self._stream(dialect, socket, client, lambda: None, speak=speak)

    def accept_call(self, request: Request, open_dialect: OpenDialect, socket: Socket) -> LiveStream:
        """Make the stream of a WebRTC call, whose request has passed the access check. Raises `Refused`."""
        self._refuse_while_draining()
        access, client = self._service.access, scope_client(request.scope)
        dialect = self._dialect(request, open_dialect)
        access.enter(client)
        return self._stream(dialect, socket, client, lambda: access.leave(client), request.headers)

    def _stream(
        self,
        dialect: Dialect,
        socket: Socket,
        client: Client,
        over: Callable[[], None],
        headers: Mapping[str, str] | None = None,
        speak: Callable[[SpeechDialect], None] | None = None,
    ) -> LiveStream:
        tracer = self._service.tracer
        return LiveStream(
            dialect,
            socket,
            engines=self._service.engines,
            registry=self._registry,
            limits=self._service.limits,
            metrics=self._service.metrics,
            queue_seconds=self._service.queue_seconds,
            client=client,
            over=over,
            flush_after_silence=self._service.flush_after_silence,
            trace=tracer.begin("slipstream.stream", client, dialect.name, headers or {}) if tracer else None,
            speak=speak,
        )

    def _open(self, request: HTTPConnection) -> tuple[Dialect, Client]:
        self._refuse_while_draining()
        if (open_dialect := self._dialects.get(request.scope["path"])) is None:
            raise Refused(404, f"no stream is at {request.scope['path']}; streams are at {', '.join(self._dialects)}")
        secrets = request.scope["path"] == REALTIME_PATH
        client = request.scope["sender"] = self._service.access.check(request, secrets=secrets)
        return self._dialect(request, open_dialect), client

    def _refuse_while_draining(self) -> None:
        if self._registry.draining:
            raise Refused(503, _STOPPING)

    def _dialect(self, request: HTTPConnection, open_dialect: OpenDialect) -> Dialect:
        try:
            return open_dialect(
                StreamRequest(
                    self._service.models,
                    request.query_params.multi_items(),
                    request.headers,
                    request.scope["id"],
                    int(time.time()),
                    self._service.limits.session_seconds,
                    token_urlsafe(16) if self.held.seconds else "",
                    configuration=scope_client(request.scope).session,
                )
            )
        except (ProtocolError, UnknownModel) as error:
            raise Refused(400, str(error)) from error


def create_app(service: Service, registry: StreamRegistry) -> Requests:
    """Create the ASGI application of `service`: its HTTP routes, and the task that sweeps `registry`."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(registry.run())
        yield
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
        await calls.close()
        uploads.close()

    uploads = Uploads(
        service.engines,
        service.models,
        registry,
        service.limits,
        service.metrics,
        service.access.tally,
        service.tracer,
    )
    calls = Calls(Streams(service, registry).accept_call)
    routes: list[BaseRoute] = [
        *calls.routes(service.access),
        *(
            Route(
                path, Guarded(uploads.endpoint(dialect), service.access, dialect.refuse, counted=True), methods=["POST"]
            )
            for path, dialect in service.uploads.items()
        ),
        *(Route(path, _needs_upgrade, methods=["GET"]) for path in service.dialects),
        *openai_routes(service.models, service.access),
        secret_route(service.models, service.access),
        *speech_routes(service.speaker, service.access),
        *_operations(service, registry, service.access, with_metrics=not service.metrics_elsewhere),
        *(Route(f"/{file.name}", _describe(file), methods=["GET"]) for file in sorted(_API.glob("*.yaml"))),
    ]
    methods: dict[str, set[str]] = {}
    refusals: dict[str, Refuse] = {}
    for route in routes:
        if isinstance(route, Route):
            methods.setdefault(route.path, set()).update(route.methods or ())
            if isinstance(route.endpoint, Guarded):
                refusals[route.path] = route.endpoint.refuse
    routes += [
        *(Route(path, _NotAllowed(allowed, refusals.get(path, plain))) for path, allowed in methods.items()),
        Mount("/", Page(directory=_SERVER / "page", html=True)),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(service.access.origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=[ID_HEADER, WARNING_HEADER, "location"],
    )
    handlers = failure_handlers(service.metrics)
    app = Starlette(routes=routes, middleware=[cors], lifespan=lifespan, exception_handlers=handlers)
    return Requests(app, service.limits.header_bytes)


def create_operations_app(service: Service, registry: StreamRegistry, access: Access | None) -> Requests:
    """Create the application of a second listener for operators, which needs no key: metrics, health, information.

    Args:
        access: Checks the Host where the listener is on a loopback address.
    """
    routes = _operations(service, registry, access, with_metrics=True)
    return Requests(
        Starlette(routes=routes, exception_handlers=failure_handlers(service.metrics)), service.limits.header_bytes
    )


def _operations(
    service: Service, registry: StreamRegistry, access: Access | None, *, with_metrics: bool
) -> list[BaseRoute]:
    handlers = _Handlers(service, registry)
    guarded = {
        "/api/build_info": handlers.build_info,
        "/api/modules_info": handlers.modules_info,
        "/v1/info": handlers.info,
    }
    if with_metrics:
        guarded["/metrics"] = handlers.metrics
    routes: list[BaseRoute] = []
    for path, handler in guarded.items():
        endpoint = request_response(handler)
        routes.append(Route(path, Guarded(endpoint, access) if access else endpoint, methods=["GET"]))
    return [*routes, Route("/healthz", handlers.health), Route("/readyz", handlers.readiness)]


class _Handlers:
    """The handlers of information, health and metrics."""

    def __init__(self, service: Service, registry: StreamRegistry) -> None:
        self._service, self._registry = service, registry

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
        engines = self._service.engines
        modules = [
            {
                "type": "batched_asr",
                "path": self._service.kyutai_path,
                "lm": name,
                "audio_tokenizer": name,
                "used_slots": str(engines[name].active),
                "total_slots": str(engines[name].slots),
            }
            for name in engines
        ]
        return JSONResponse(modules)

    async def info(self, request: Request) -> Response:
        models = self._service.models
        info = models[None]
        needs_key = self._service.access.keys is not None
        return JSONResponse(
            {"model": info.model, "delay": info.delay_seconds, "models": list(models), "needs_key": needs_key}
        )

    async def health(self, request: Request) -> Response:
        """Return 503 when the process must be restarted."""
        return _status(self._service.trouble)

    async def readiness(self, request: Request) -> Response:
        """Return 503 when new streams should go elsewhere."""
        engines = self._service.engines.values()
        full = self._service.ready_when_free and all(engine.active >= engine.slots for engine in engines)
        stopping = _STOPPING if self._registry.draining else ""
        return _status(self._service.trouble or stopping or ("all slots are in use" if full else ""))

    async def metrics(self, request: Request) -> Response:
        metrics, page = self._service.metrics, self._service.page
        metrics.observe_engines(self._service.engines.values())
        accept = request.headers.get("accept", "")  # exemplars need OpenMetrics
        if page is not None:
            text, media_type = await page(accept)
        else:
            encode, media_type = choose_format(accept)
            text = encode(metrics.registry)
        return Response(text, media_type=media_type)


def _info(name: str, engine: AnyEngine) -> StreamInfo:
    format = engine.format
    return StreamInfo(
        model=name,
        delay_seconds=format.delay_frames / format.frame_rate,
        frame_seconds=1 / format.frame_rate,
        sample_rate=format.sample_rate,
        turns=format.turns,
        delays=format.delays,
    )


async def _needs_upgrade(request: Request) -> Response:
    return PlainTextResponse("this address takes WebSockets", 426, {"upgrade": "websocket", "connection": "upgrade"})


class _NotAllowed:
    """ASGI endpoint for the other methods of a path, which would otherwise be looked up among the page's files."""

    def __init__(self, allowed: set[str], refuse: Refuse) -> None:
        allow = ", ".join(sorted(allowed))
        self._response = refuse(Refused(405, f"this address takes {allow}", {"allow": allow}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._response(scope, receive, send)


_SERVER = Path(__file__).parents[1]
_API = _SERVER / "api"


def _describe(file: Path) -> Callable[[Request], Awaitable[Response]]:
    async def describe(request: Request) -> Response:
        return FileResponse(file, media_type="application/yaml")

    return describe


def _status(trouble: str) -> Response:
    return PlainTextResponse(trouble or "ok", 503 if trouble else 200)
