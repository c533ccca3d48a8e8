"""Run the server: sockets, TLS, signals, drain, health and logs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn
from pythonjsonlogger.json import JsonFormatter

from slipstream.connections.acceptor import Acceptor, Gate, connections_that_fit
from slipstream.connections.access import Access, Client
from slipstream.connections.http import HttpConnection
from slipstream.connections.paced import CLOSE_SECONDS
from slipstream.connections.tcp import TcpConnection
from slipstream.connections.websocket import Accept, WebSocket
from slipstream.dialects import OpenDialect
from slipstream.engine.live import AnyEngine
from slipstream.errors import ConfigError, EngineError
from slipstream.server import systemd
from slipstream.server.discovery import Announcement
from slipstream.server.http.app import Service, Streams, create_app, create_operations_app
from slipstream.server.http.requests import Requests
from slipstream.server.streams.held import Claim
from slipstream.server.streams.registry import StreamRegistry
from slipstream.server.streams.topics import Topics

DEAD_PEER_SECONDS = 30
"""Time after which the kernel drops a peer that acknowledges nothing, or keeps its window closed."""
BACKLOG = 2048
OPERATIONS_CONNECTIONS = 32
SWEEP_TICKS = 3
"""Of uvicorn's main loop, 0.1 s each: how often the deadlines of requests are checked."""
HUNG_SECONDS = 10.0
"""A step that takes this long will not end: stopping does not wait for it."""
SWITCH_SECONDS = 0.001

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of a certificate chain and its key, in PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class TcpListener:
    """A listening socket, and the dialect of its connections."""

    socket: socket.socket
    open_dialect: OpenDialect


def serve(
    service: Service,
    listener: socket.socket | None,
    tls: Tls | None = None,
    operations: tuple[socket.socket, Access | None] | None = None,
    tcp: Sequence[TcpListener] = (),
    announcement: Announcement | None = None,
) -> None:
    """Serve on `listener` until SIGTERM or SIGINT, then drain; a second SIGINT stops immediately.

    SIGHUP reads the keys and the certificate again.

    Args:
        listener: For HTTP and WebSockets; None serves only `tcp`.
        operations: A second listener for metrics, health and information, without keys, and its Host check.
        tcp: Listeners of dialects that are not WebSockets.
        announcement: Announces one of them on the local network.

    Raises `EngineError` when the model failed or hung.
    """
    # The engine's thread and the event loop take turns: at Python's 5 ms, each socket call would wait for a whole turn.
    sys.setswitchinterval(SWITCH_SECONDS)
    # Objects loaded so far stay: each full garbage collection would traverse them for 16 ms and block all streams.
    gc.freeze()
    Server(service, tls, operations, tcp, announcement).run(sockets=[listener] if listener else [])
    for engine in service.engines.values():
        if _is_lost(engine):
            raise EngineError(f"the server ended because {service.trouble}") from engine.failure


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket. Raises `ConfigError` when the address cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        _listen(listener, address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def share(listener: socket.socket, number: int) -> list[socket.socket]:
    """Replace a listening socket by several for as many processes.

    On Linux each has its own queue of connections (SO_REUSEPORT), and the kernel spreads connections evenly. Elsewhere
    all are the same socket. Raises `ConfigError` when the address has been taken meanwhile.
    """
    if sys.platform != "linux":
        return [listener.dup() for _ in range(number)]
    address = listener.getsockname()
    listener.close()  # opened without SO_REUSEPORT: it has made sure that no other server has the port
    try:
        listeners = []
        for _ in range(number):
            one = socket.socket(listener.family, listener.type, listener.proto)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _listen(one, address)
            listeners.append(one)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address[0]} port {address[1]}: {error.strerror or error}") from error
    return listeners


def _listen(listener: socket.socket, address: Any) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _give_up_dead_peers(listener)
    listener.bind(address)
    listener.listen(BACKLOG)


class Server(uvicorn.Server):
    """uvicorn with its own acceptors, connections, drain and health; uvicorn alone closes WebSockets immediately."""

    def __init__(
        self,
        service: Service,
        tls: Tls | None = None,
        operations: tuple[socket.socket, Access | None] | None = None,
        tcp: Sequence[TcpListener] = (),
        announcement: Announcement | None = None,
        topics: Topics | None = None,
    ) -> None:
        self._service, self._tls, self._operations, self._tcp = service, tls, operations, tcp
        self._announcement = announcement
        self._registry = StreamRegistry(service.limits, topics or Topics(service.webhooks))
        self._streams = Streams(service, self._registry)
        limits = service.limits
        fit = connections_that_fit(limits.connections)
        self._gate = Gate(limits.connections, limits.connections_per_address, fit, service.access.tally)
        service.metrics.connections.set_function(lambda: len(self._gate))
        self._stopping = False
        self._failing = False
        self._drain: asyncio.Task[bool] | None = None
        self._last_alive = 0.0
        super().__init__(
            uvicorn.Config(
                create_app(service, self._registry),
                ws=cast(Any, WebSocket),  # so that uvicorn hands over upgrades
                timeout_graceful_shutdown=math.ceil(CLOSE_SECONDS),  # after the drain
                h11_max_incomplete_event_size=service.limits.header_bytes,
                ssl_certfile=tls.certificate if tls else None,
                ssl_keyfile=tls.key if tls else None,
                log_config=None,
                access_log=False,  # its lines hold the query, and so keys
                server_header=False,
            )
        )

    @property
    def app(self) -> Requests:
        """The ASGI application of its HTTP routes, for another server that runs in the same event loop."""
        app: Requests = self.config.app  # type: ignore[assignment]
        return app

    @property
    def accept(self) -> Accept:
        """Makes the stream of a WebSocket that another server has accepted."""
        return self._streams.accept

    async def drain(self) -> bool:
        """Finish all connections. Returns whether they ended within the limit."""
        return await self._registry.drain()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stopping:
            super().handle_exit(sig, frame)
        self._stopping = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self.servers: list[Any] = []  # uvicorn closes them, and waits for them
        for listener in sockets or []:
            refused = partial(self._refuse, 503, "too many connections")
            tls, seconds = self.config.ssl, self._service.limits.handshake_seconds
            acceptor = Acceptor(listener, self._gate, self._new_connection, refused, tls, handshake_seconds=seconds)
            self.servers.append(acceptor)
        if self._operations is not None:
            listener, access = self._operations
            app = create_operations_app(self._service, self._registry, access)
            gate = Gate(OPERATIONS_CONNECTIONS, OPERATIONS_CONNECTIONS)
            refused = partial(self._refuse, 503, "too many connections to the metrics port")
            self.servers.append(Acceptor(listener, gate, partial(self._new_connection, app=app), refused))
        for tcp in self._tcp:
            refused = partial(self._refuse, 503, "too many connections")
            new_connection = partial(self._new_tcp_connection, tcp.open_dialect)
            self.servers.append(Acceptor(tcp.socket, self._gate, new_connection, refused, refusal=b""))
        if self._announcement is not None:
            await self._announcement.start()
        self.begin()
        self.started = True
        systemd.notify("READY=1")

    def begin(self) -> None:
        """Reload on SIGHUP. Called once the server accepts connections."""
        if threading.current_thread() is threading.main_thread():
            reload_on_sighup(self.reload)

    def release(self, claim: Claim) -> None:
        """End a held stream whose client has begun a new one in another process."""
        self._streams.held.release(claim)

    def finish(self) -> None:
        """Finish the open streams, then end."""
        self._stopping = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._announcement is not None:
            await self._announcement.stop()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if counter % SWEEP_TICKS == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpConnection):
                    connection.sweep(now)
        self._watch(now)
        if self._stopping and self._drain is None:
            systemd.notify("STOPPING=1")
            logger.info("draining", extra={"streams": len(self._registry)})
            self._drain = asyncio.create_task(self._registry.drain())
        if self._drain is not None and self._drain.done():
            logger.info("drained", extra={"complete": self._drain.result()})
            self.should_exit = True
        elif self._drain is not None and any(map(_is_lost, self._service.engines.values())):
            self._drain.cancel()  # this model emits no more text
            self.should_exit = True
        return await super().on_tick(counter)

    def reload(self) -> None:
        """Read the keys and the TLS certificate again. What is invalid is logged, and the old one stays."""
        systemd.notify_reloading()
        try:
            if self._service.access.keys is not None:
                self._service.access.keys.reload()
            if self._tls is not None and self.config.ssl is not None:
                check_certificate(self._tls)  # a mismatched pair would break the one in use
                self.config.ssl.load_cert_chain(self._tls.certificate, self._tls.key)
        except (ConfigError, OSError) as error:  # TLS errors are OSErrors
            logger.error("reload failed: %s: the old keys or certificate stay", error)
        else:
            logger.info("reloaded keys and certificate")
        systemd.notify("READY=1")

    def _watch(self, now: float) -> None:
        """Stop when the model has failed; report to systemd that the server works, unless the model hangs."""
        engines = self._service.engines.values()
        failures = [engine.failure for engine in engines if engine.failure is not None]
        if failures and not self._failing:
            self._failing = self._stopping = True
            logger.critical("the model failed: the server stops", exc_info=failures[0])
        every = systemd.watchdog_seconds()
        if every is not None and now - self._last_alive >= every and not self._service.trouble:
            self._last_alive = now
            active, slots = sum(engine.active for engine in engines), sum(engine.slots for engine in engines)
            systemd.notify("WATCHDOG=1", f"STATUS={active} of {slots} slots in use")

    def _new_connection(self, lost: Callable[[], None], app: Requests | None = None) -> HttpConnection:
        connection = HttpConnection(
            self.config,
            self.server_state,
            self.lifespan.state,
            limits=self._service.limits,
            new_websocket=self._new_websocket,
            refused=self._refuse,
            lost=lost,
        )
        if app is not None:
            connection.serve_only(app)
        return connection

    def _new_websocket(self, scope: dict[str, Any], lost: Callable[[], None]) -> WebSocket:
        limits, connections = self._service.limits, self.server_state.connections
        turns = self._registry.turns
        return WebSocket(self._streams.accept, limits, turns, scope, cast(set[Any], connections), lost)

    def _new_tcp_connection(self, open_dialect: OpenDialect, lost: Callable[[], None]) -> TcpConnection:
        accept = partial(self._streams.accept_tcp, open_dialect)
        connections = cast(set[Any], self.server_state.connections)
        return TcpConnection(accept, self._service.limits, self._registry.turns, connections, lost)

    def _refuse(self, status: int, reason: str, address: str, id: str = "") -> None:
        self._service.metrics.refuse(status, reason, Client(id, address))


def reload_on_sighup(reload: Callable[[], None]) -> None:
    """Call `reload` in the event loop on SIGHUP, where there is one."""
    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])  # which the command line blocks at its start


@contextlib.contextmanager
def naming_files(tls: Tls) -> Iterator[None]:
    """Turn an `OSError` about the certificate or its key into a `ConfigError` that names both files."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot use {tls.certificate} with the key {tls.key}: {error}: expected a certificate chain and its "
            "private key in PEM"
        ) from error


def check_certificate(tls: Tls) -> None:
    """Raise `OSError` unless the certificate and the key can be read and belong together."""
    for file in (tls.certificate, tls.key):
        file.read_bytes()  # an error of `load_cert_chain` does not name the file
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)


class LogFormatter(JsonFormatter):
    """A log record as one JSON object: `time`, `level`, `logger`, `message` and the fields of `extra`."""

    converter = staticmethod(time.gmtime)
    default_time_format, default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return log_data | {"level": log_data["level"].lower()}


def log_to_stderr(level: str, fields: dict[str, str] | None = None) -> None:
    """Log as JSON lines. No audio, no text and no key is logged at any level.

    Args:
        level: Least level of what is logged.
        fields: Fields of every line.
    """
    handler = logging.StreamHandler(sys.stderr)
    names = {"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "exception"}
    handler.setFormatter(
        LogFormatter(["asctime", "levelname", "name", "message"], rename_fields=names, static_fields=fields)
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("slipstream").handlers.clear()  # the command line's, which writes plain text
    logging.captureWarnings(True)
    # Below that they write addresses, whose query may hold a key, at DEBUG whole messages, and a warning for every
    # malformed request, which lets a client fill the log.
    for name in ("uvicorn.error", "websockets.server"):
        logging.getLogger(name).setLevel(max(logging.ERROR, logging.getLogger().level))
    # FFmpeg logs content of damaged files, which may be a client's text.
    logging.getLogger("libav").setLevel(logging.CRITICAL)


def _is_lost(engine: AnyEngine) -> bool:
    return not engine.alive or engine.step_seconds > HUNG_SECONDS


def _give_up_dead_peers(listener: socket.socket) -> None:
    """Set the kernel's timeouts for peers that are silent or stop reading; accepted sockets inherit them."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_PEER_SECONDS)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_SECONDS * 1000)
