"""Serve until told to stop: sockets, TLS, signals, drain and logs."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.server import ServerState

from slipstream.errors import ConfigError
from slipstream.server.app import Service, Streams, create_app
from slipstream.server.hub import Hub
from slipstream.server.websocket import WebSocket

DEAD_PEER_SECONDS = 30
"""After how long the kernel gives up a peer that acknowledges nothing, or leaves its window closed."""
BACKLOG = 2048
SWITCH_SECONDS = 0.001

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of a certificate chain and its key, in PEM."""

    certificate: Path
    key: Path


def serve(service: Service, listener: socket.socket, tls: Tls | None = None) -> None:
    """Serve on `listener` until SIGTERM or SIGINT, then drain; a second SIGINT stops at once."""
    # The engine's thread and the event loop take turns: at Python's 5 ms, each socket call would wait for a whole turn.
    sys.setswitchinterval(SWITCH_SECONDS)
    # What is loaded by now stays: each full collection would walk over it for 16 ms, in which no stream is served.
    gc.freeze()
    Server(service, tls).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket. Raises `ConfigError` when the address cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _give_up_dead_peers(listener)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


class Server(uvicorn.Server):
    """uvicorn, which on its own closes WebSockets as soon as it is told to stop: here they are drained first."""

    def __init__(self, service: Service, tls: Tls | None = None) -> None:
        self._hub = Hub(service.limits)
        self._told_to_stop = False
        self._drain: asyncio.Task[bool] | None = None
        streams = Streams(service, self._hub)

        def new_websocket(*, server_state: ServerState, **_: Any) -> WebSocket:
            return WebSocket(streams.accept, service.limits.message_bytes, server_state.connections)

        super().__init__(
            uvicorn.Config(
                create_app(service, self._hub),
                ws=cast(Any, new_websocket),  # declared as a class, only ever called
                timeout_graceful_shutdown=int(service.limits.drain_seconds),
                ssl_certfile=tls.certificate if tls else None,
                ssl_keyfile=tls.key if tls else None,
                backlog=BACKLOG,
                log_config=None,
                access_log=False,  # its lines hold the query, and so keys
                server_header=False,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._told_to_stop:
            super().handle_exit(sig, frame)
        self._told_to_stop = True

    async def on_tick(self, counter: int) -> bool:
        if self._told_to_stop and self._drain is None:
            logger.info("draining", extra={"streams": len(self._hub)})
            self._drain = asyncio.create_task(self._hub.drain())
        if self._drain is not None and self._drain.done():
            logger.info("drained", extra={"complete": self._drain.result()})
            self.should_exit = True
        return await super().on_tick(counter)


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object: `time`, `level`, `logger`, `message` and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _RECORD_FIELDS}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def log_to_stderr(level: str) -> None:
    """Log as JSON lines. No audio, no text and no key is ever logged."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # Below that they write addresses, whose query may hold a key, and at DEBUG whole messages.
    for name in ("uvicorn.error", "websockets.server"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


_RECORD_FIELDS = set(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


def _give_up_dead_peers(listener: socket.socket) -> None:
    """For peers that fell silent, and for those that stopped reading; the sockets it accepts inherit this."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_PEER_SECONDS)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_SECONDS * 1000)
