"""Listening sockets of the commands that serve."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from slipstream.errors import ConfigError

if TYPE_CHECKING:
    from slipstream.dialects import OpenDialect
    from slipstream.server.run import TcpListener

AllowRemote = Annotated[
    bool,
    typer.Option(
        "--allow-remote", help="Let protocols without keys listen on an address that other machines can reach."
    ),
]


def listen_without_keys(
    stack: ExitStack, option: str, address: str, open_dialect: OpenDialect, allow_remote: bool
) -> TcpListener:
    """Listen on `HOST:PORT` for a protocol that has no keys; `stack` closes the socket.

    Raises `ConfigError` that names the `option`.
    """
    from slipstream.connections.access import check_without_keys
    from slipstream.server.run import TcpListener, listen

    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None or parts.netloc != address:
        raise ConfigError(f"{option} {address}: expected HOST:PORT, such as 127.0.0.1:10300")
    check_without_keys(host, option, allow_remote)
    return TcpListener(stack.enter_context(listen(host, port)), open_dialect)


def shown(listener: socket.socket) -> str:
    """Return the address of a listening socket as `HOST:PORT`."""
    address, port = listener.getsockname()[:2]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
