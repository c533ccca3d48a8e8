"""Who may connect: keys, the pages that may ask (Origin), and the names the server answers to (Host)."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from slipstream.errors import ConfigError
from slipstream.server.keys import KeyRing

KEY_HEADER = "kyutai-api-key"
KEY_PARAMETER = "auth_id"
"""For browsers, which cannot set a header on a WebSocket."""


class Access:
    """Decides whether a request is let in.

    Without `keys` everyone on this machine is, so the server must listen on a loopback address, and answers only to
    loopback names: else a page elsewhere could reach it by a name of its own that resolves to 127.0.0.1.
    `origins`: pages of other hosts that may connect, besides the server's own; `*` is every page.
    """

    def __init__(self, host: str, keys: KeyRing | None = None, origins: Sequence[str] = ()) -> None:
        if keys is None and not is_loopback(host):
            raise ConfigError(
                f"{host} can be reached from other machines, so the server needs keys: give --api-keys a file with "
                "lines made by `slipstream api-key NAME`, or listen on 127.0.0.1"
            )
        self.keys, self.origins = keys, tuple(origins)

    def refusal(self, request: HTTPConnection) -> tuple[int, str] | None:
        """The HTTP status and reason to refuse a request with, or None to let it in."""
        host = urlsplit(f"//{request.headers.get('host', '')}")
        if self.keys is None and not is_loopback(host.hostname or ""):
            return 421, "this server has no keys and answers only to localhost"
        origin = request.headers.get("origin")
        if origin is not None and not {"*", origin} & set(self.origins) and urlsplit(origin).netloc != host.netloc:
            return 403, f"pages of {origin} may not connect: see --allow-origin"
        key = request.headers.get(KEY_HEADER) or request.query_params.get(KEY_PARAMETER)
        if self.keys is not None and self.keys.name_of(key) is None:
            return 401, f"no valid key in the header {KEY_HEADER} or the query {KEY_PARAMETER}"
        return None


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
