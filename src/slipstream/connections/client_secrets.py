"""Client secrets: keys that a page may have, because they expire and open only Realtime sessions.

A secret holds the name of the key that asked for it, its expiry and a configuration, signed with a key that is derived
from that key's hash. The server keeps nothing: every process with the same keys accepts it, also after a restart, and
none does once the key is gone. It is `ek_` and base64url of `name`, a zero byte, JSON, and the signature.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slipstream.connections.keys import SIGNATURE_BYTES, Key
from slipstream.dialects.texts import parse_json, to_json
from slipstream.errors import SlipstreamError

PREFIX = "ek_"


class InvalidSecret(SlipstreamError):
    """A client secret was not made by this server, or has been changed."""


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """The content of a client secret.

    Args:
        key: The key that asked for it, which its sessions count for.
        expires_at: Until when it opens sessions, in seconds since 1970.
        session: The configuration of its sessions, as JSON's types.
    """

    key: Key
    expires_at: int
    session: Mapping[str, Any]

    def seal(self) -> str:
        """Return it as text, which is signed and not encrypted."""
        content = to_json([self.expires_at, self.session])
        body = b"\0".join([self.key.name.encode("utf-8", "surrogateescape"), content.encode()])
        return PREFIX + _encode(body + self.key.sign(body))

    @classmethod
    def unseal(cls, text: str, find: Callable[[str], Key | None]) -> ClientSecret:
        """Read a client secret, which may have expired.

        Args:
            text: What `seal` returned.
            find: Returns the key of a name.

        Raises:
            InvalidSecret: It is anything else, or its key is unknown.
        """
        encoded = text[len(PREFIX) :].encode("utf-8", "surrogateescape")
        try:
            data = base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
        except ValueError as error:
            raise InvalidSecret("not base64") from error
        if PREFIX + _encode(data) != text:
            raise InvalidSecret("another text for these bytes than the one that was made")
        body, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
        name, _, content = body.rpartition(b"\0")
        key = find(name.decode("utf-8", "surrogateescape"))
        if key is None or not hmac.compare_digest(key.sign(body), signature):
            raise InvalidSecret("the signature is that of no key")
        try:
            expires_at, session = parse_json(content)
        except (ValueError, TypeError, RecursionError) as error:  # everyone can sign where there are no keys
            raise InvalidSecret("not what was signed") from error
        if not isinstance(expires_at, int) or not isinstance(session, dict):
            raise InvalidSecret("not what was signed")
        return cls(key, expires_at, session)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
