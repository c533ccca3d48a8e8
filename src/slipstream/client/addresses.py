"""Addresses of a server: of a stream, what a next connection continues, and of a replica."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import SplitResult, urlencode, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from slipstream.errors import SlipstreamError
from slipstream.hints import Hints

MAX_TARGET_BYTES = 8000
"""Path and parameters of an address, which a server reads as one line."""


class ServerError(SlipstreamError):
    """The server cannot be reached, refused, or closed the stream. `code`: its HTTP status or close code, if any."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Resumption:
    """The stream that a new connection continues, if the server still holds it.

    Args:
        session: Its ID: `session` of the stream; empty if no server may hold it.
        received: Messages that its client has: `received` of the stream.
        first_frame: Number of the first frame that is sent to a server that does not hold the stream. It then sends
            `History`; None for a stream without it.
        pieces: The text of the stream, from the `History` events, around and after this frame.
    """

    session: str = ""
    received: int = 0
    first_frame: int | None = None
    pieces: tuple[str, ...] = ()


def stream_address(
    url: str, sample_rate: int, model: str | None, resumption: Resumption | None, hints: Hints | None
) -> str:
    """Return the address of a stream in the plain protocol.

    Raises:
        ServerError: It is no address of a server (400), or the hints do not fit into it (431).
    """
    parts = _parse(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    query: list[tuple[str, Any]] = [("encoding", "pcm_f32le"), ("sample_rate", sample_rate)]
    if model:
        query.append(("model", model))
    if resumption and resumption.session:
        query += [("resume", resumption.session), ("received", resumption.received)]
    if resumption and resumption.first_frame is not None:
        query.append(("history", ".".join([str(resumption.first_frame), *resumption.pieces])))
    query += hints.query() if hints is not None else []
    path, parameters = f"{parts.path.rstrip('/')}/v1/stream", urlencode(query)
    if (size := len(path) + len(parameters)) > MAX_TARGET_BYTES:
        reason = f"the address of the stream would have {size:,} bytes, and a server takes {MAX_TARGET_BYTES:,}"
        raise ServerError(f"{reason}: give fewer keywords or a shorter prompt", 431)
    return urlunsplit((scheme, parts.netloc, path, parameters, ""))


def key_headers(key: str | None) -> dict[str, str]:
    """Return the headers of a request with a key."""
    return {"kyutai-api-key": key} if key else {}


def find_replica(url: str, key: str | None = None) -> str:
    """Return the address of a replica with a free slot, for a stream that does not pass the proxy before them.

    Args:
        url: Address of a server with replicas (`slipstream.ray.app`): http, https, ws or wss.
        key: API key.

    Raises:
        ServerError: The server cannot be reached, refuses, or has no replicas.

    Example:
        >>> with open_stream(find_replica("http://127.0.0.1:8000"), sample_rate=16_000) as stream: ...
    """
    parts = _parse(url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    address = urlunsplit((scheme, parts.netloc, f"{parts.path.rstrip('/')}/v1/sessions", "", ""))
    try:
        with urlopen(Request(address, b"", key_headers(key)), timeout=30) as response:
            return str(json.load(response)["url"])
    except HTTPError as error:
        with error:
            reason = error.read(200).decode("utf-8", "replace").strip()
        if error.code in (404, 405):
            reason = "this server has no replicas: connect to it directly"
        raise ServerError(f"{url}: no session: status {error.code}: {reason}", error.code) from error
    except (OSError, ValueError, KeyError) as error:
        raise ServerError(f"{url}: no session: {error}") from error


def _parse(url: str) -> SplitResult:
    """Return the parts of a server's address, which may have no scheme. Raises `ServerError` with code 400."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, _ = parts.hostname, parts.port
    except ValueError as error:  # of a host or a port
        raise ServerError(f"{url}: {error}", 400) from error
    if parts.scheme not in ("http", "https", "ws", "wss") or not host:
        example = "such as http://127.0.0.1:8080"
        raise ServerError(f"{url!r}: expected an address with http://, https://, ws:// or wss://, {example}", 400)
    return parts
