"""Access control: API keys and their limits, page origins (Origin), and the names the server answers to (Host)."""

from __future__ import annotations

import ipaddress
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import HTTPConnection

from slipstream.connections.client_secrets import PREFIX, ClientSecret, InvalidSecret
from slipstream.connections.keys import Key, KeyRing
from slipstream.connections.tally import LocalTally, Tally
from slipstream.dialects.models import KEY_PARAMETER
from slipstream.errors import ConfigError, SlipstreamError

KEY_HEADER = "kyutai-api-key"
ID_HEADER = "x-request-id"
SUBPROTOCOLS = ("realtime", "token", "bearer")
"""WebSocket subprotocols that clients of OpenAI and Deepgram offer. A browser's key follows, as another one."""
_KEY_SCHEMES = ("bearer", "token")
_KEY_SUBPROTOCOL = "openai-insecure-api-key."
_ANYONE = Key("", b"")
"""Signs the client secrets of a server without keys: anyone can make one, as anyone may connect."""
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{0,5})?", re.IGNORECASE)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?P<authority>(\[[0-9a-f:.]+\]|[a-z0-9._-]*)(:\d{1,5})?)", re.IGNORECASE)


class Refused(SlipstreamError):
    """A request is refused. `status`: of the response. `reason`: its body. `headers`: of the response."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


@dataclass(frozen=True, slots=True)
class Client:
    """The sender of a request, for the log.

    Args:
        id: Identifies the request. The client receives it too, in the response header `x-request-id`.
        address: IP address of the connection's other end.
        key: The API key it used, or that its client secret is of; None on a server without keys.
        session: The configuration that its client secret has; None without one.
    """

    id: str = ""
    address: str = ""
    key: Key | None = None
    session: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def log_fields(self) -> dict[str, str | None]:
        return {"id": self.id, "client": self.key.name if self.key else None, "address": self.address}


class Access:
    """Decides whether a request is accepted, and keeps the limits of each key.

    Args:
        host: Address to listen on. Without `keys` it must be a loopback address, and the server answers only to
            loopback names: otherwise a page elsewhere could reach it by a name that resolves to 127.0.0.1.
        keys: The accepted keys.
        origins: Pages of other hosts that may connect, in addition to the server's own; `*` allows every page.
        tally: Counts the streams and uploads of each key.
    """

    def __init__(
        self, host: str, keys: KeyRing | None = None, origins: Sequence[str] = (), tally: Tally | None = None
    ) -> None:
        if keys is None and not is_loopback(host):
            raise ConfigError(
                f"{host} can be reached from other machines, so the server needs keys: create them with "
                "`slipstream api-key NAME >> FILE` and add --api-keys FILE, or listen on 127.0.0.1"
            )
        for origin in origins:
            if origin not in {"*", "null"} and _ORIGIN.fullmatch(origin) is None:
                raise ConfigError(f"origin {origin!r}: expected *, or scheme://host:port without a path")
        self.keys, self.origins = keys, tuple(origins)
        self.tally: Tally = tally or LocalTally()

    def check(self, request: HTTPConnection, *, secrets: bool = False) -> Client:
        """Identify the client of a request.

        Args:
            secrets: Whether the address takes client secrets, too.

        Raises:
            Refused: With status 400, 401, 403 or 421.
        """
        host = request.headers.get("host", "")
        parsed = _HOST.fullmatch(host)
        if host and parsed is None:
            raise Refused(400, f"malformed Host header {host!r:.80}: expected a name or an address, and a port")
        if self.keys is None and not (parsed and is_loopback(parsed["name"].strip("[]"))):
            raise Refused(421, "this server has no keys and answers only to localhost")
        self._check_origin(request.headers.get("origin"), host)
        sent, session = _sent_key(request), None
        key = self.keys.find(sent) if self.keys is not None else None
        if key is None and secrets and (secret := self._client_secret(sent)) is not None:
            if secret.expires_at <= time.time():
                raise _no_key("the client secret has expired")
            key, session = secret.key if self.keys is not None else None, secret.session
        elif key is None and self.keys is not None:
            raise _no_key(
                f"no valid key in the header {KEY_HEADER}, the header Authorization or the query {KEY_PARAMETER}"
            )
        return Client(request.scope.get("id", ""), (request.scope.get("client") or ("",))[0], key, session)

    def client_secret(self, client: Client, expires_at: int, session: Mapping[str, Any]) -> str:
        """Make a client secret for a client: see `ClientSecret`."""
        return ClientSecret(client.key or _ANYONE, expires_at, session).seal()

    def _client_secret(self, sent: str | None) -> ClientSecret | None:
        """Read a client secret. Returns None for any other key, which a server without keys ignores."""
        if not sent or not sent.startswith(PREFIX):
            return None
        try:
            return ClientSecret.unseal(sent, self.keys.named if self.keys is not None else lambda name: _ANYONE)
        except InvalidSecret:
            return None

    def enter(self, client: Client, now: float | None = None) -> None:
        """Count a stream or an upload that starts; `leave` must follow. Raises `Refused` (429) over the key's limits.

        Args:
            now: Seconds on a monotonic clock.
        """
        if (key := client.key) is None:
            return
        name = f"key {key.name}"
        if full := self.tally.enter([(name, key.streams or sys.maxsize)]):
            raise Refused(429, f"the key {key.name} has {full[1]} of {key.streams} streams open")
        if key.per_minute is not None:
            wait = self.tally.start(name, key.per_minute, time.monotonic() if now is None else now)
            if wait > 0:
                self.tally.leave(name)
                reason = f"the key {key.name} starts at most {key.per_minute} streams per minute"
                raise Refused(429, reason, {"retry-after": str(math.ceil(wait))})

    def leave(self, client: Client) -> None:
        """Count the end of what `enter` counted."""
        if client.key is not None:
            self.tally.leave(f"key {client.key.name}")

    def _check_origin(self, origin: str | None, host: str) -> None:
        if origin is None or {"*", origin} & set(self.origins):
            return
        parsed = _ORIGIN.fullmatch(origin)
        if parsed is None and origin != "null":
            raise Refused(400, f"malformed Origin header {origin!r:.80}: expected scheme://host:port")
        if parsed is None or parsed["authority"].lower() != host.lower():
            raise Refused(403, f"pages of {origin:.80} may not connect: see --allow-origin")


def _no_key(reason: str) -> Refused:
    return Refused(401, reason, {"www-authenticate": "Bearer"})


def check_without_keys(host: str, option: str, allowed: bool) -> None:
    """Check the address of a listener whose protocol has no keys. `allowed`: whether other machines may reach it.

    Raises `ConfigError` that names the `option`.
    """
    if not allowed and not is_loopback(host):
        raise ConfigError(
            f"{option}: {host} can be reached from other machines, and this protocol has no keys: listen on 127.0.0.1, "
            "or allow everyone who can reach the address with --allow-remote"
        )


def is_loopback(host: str) -> bool:
    """Return whether a host name or address means this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _sent_key(request: HTTPConnection) -> str | None:
    for name in (KEY_HEADER, "x-api-key", "xi-api-key"):  # the others are those of Gradium's and ElevenLabs' clients
        if key := request.headers.get(name):
            return key
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() in _KEY_SCHEMES:
        return key.strip()
    offered = [name.strip() for name in request.headers.get("sec-websocket-protocol", "").split(",")]
    for name, following in zip(offered, [*offered[1:], ""], strict=True):
        if name.startswith(_KEY_SUBPROTOCOL):
            return name.removeprefix(_KEY_SUBPROTOCOL)
        if name in _KEY_SCHEMES:
            return following
    return request.query_params.get(KEY_PARAMETER)
