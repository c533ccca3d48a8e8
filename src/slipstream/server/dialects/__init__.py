"""The WebSocket protocols that clients speak: one module per dialect, and the registry of their addresses.

A dialect decodes a client's messages to commands and encodes a stream's events as messages (`protocol.Dialect`).
Sockets, limits, sessions and logs are the same for all dialects. To add one:

1. Write a module here with a class that implements `Dialect`, and a function that opens it for a connection.
2. Add one line to `DIALECTS`.
3. Describe its messages in `api/asyncapi.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from slipstream.server.dialects import kyutai, plain
from slipstream.server.protocol import Dialect, StreamInfo

OpenDialect: TypeAlias = Callable[[Mapping[str, str], StreamInfo, str], Dialect]
"""Opens a dialect for one connection: its query parameters, the server's streams, and the request's ID.

Raises `ProtocolError` for parameters that are invalid."""

DIALECTS: dict[str, OpenDialect] = {
    kyutai.PATH: kyutai.open_dialect,
    plain.PATH: plain.open_dialect,
}
"""The dialect of each address."""
