"""The WebSocket protocols that clients speak: one module per dialect, and the registry of their addresses.

A dialect turns a client's messages into actions, and the events of its sessions into messages (`protocol.Dialect`).
Sockets, limits, keys, sessions, metrics and logs are the same for all dialects. To add one:

1. Write a module here with a subclass of `Dialect`, and a function that opens it for a connection.
2. Add one line to `DIALECTS`.
3. Describe its messages in `api/asyncapi.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from slipstream.server.dialects import audiosocket, calls, gradium, kyutai, plain, realtime, twilio, vosk, wyoming
from slipstream.server.dialects.deepgram import flux, v1
from slipstream.server.models import StreamRequest
from slipstream.server.protocol import Dialect

OpenDialect: TypeAlias = Callable[[StreamRequest], Dialect]
"""Opens a dialect for one connection. Raises `ProtocolError` for parameters that are invalid, and `UnknownModel`."""

DIALECTS: dict[str, OpenDialect] = {
    kyutai.PATH: kyutai.open_dialect,
    plain.PATH: plain.open_dialect,
    vosk.PATH: vosk.open_dialect,
    gradium.PATH: gradium.open_dialect,
    realtime.PATH: realtime.open_dialect,
    v1.PATH: v1.open_dialect,
    flux.PATH: flux.open_dialect,
    twilio.PATH: twilio.open_dialect,
    calls.PATH: calls.open_dialect,
}
"""The dialect of each address."""

TCP_DIALECTS: dict[str, OpenDialect] = {
    "wyoming": partial(wyoming.open_wyoming, wyoming.WyomingOptions()),
    "audiosocket": audiosocket.open_dialect,
}
"""The dialects on TCP connections of their own, by name."""
