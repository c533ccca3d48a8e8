"""The WebSocket protocols that clients speak: one module per dialect, and the registry of their addresses.

A dialect turns a client's messages into actions, and the events of its sessions into messages (`protocol.Dialect`).
Sockets, limits, keys, sessions, metrics and logs are the same for all dialects. To add one:

1. Write a module here with `PATH`, a subclass of `Dialect` (`open`, `receive`, `handle`, `error`, `queued`), and
   `open_dialect`, which opens it for a connection. `order.Order` checks the order of messages by a table of states,
   `formats.PcmStream` decodes raw audio, and the other classes of `formats.LiveDecoder` other formats.
2. Add one line to `DIALECTS`, or to `TCP_DIALECTS` for a protocol with its own TCP port, which also needs an
   option in `slipstream.cli.serve`.
3. Describe its messages in `server/api/asyncapi.yaml` and its route in `server/api/openapi.yaml`, with cases in
   `tests/server/test_asyncapi.py`.
4. Add a client to `CLIENTS` in `benchmarks/dialects.py`, which `tests/dialects/test_every_dialect.py` runs. The
   dialect's own tests are in `tests/dialects`, in a file of its name.
5. Add the address to the routes in `docs/guides/server.md`, a guide with its entry in `mkdocs.yml`, and the tests to
   `docs/reference/tested-clients.md`.

A module here imports neither `slipstream.connections` nor `slipstream.server`: the import contracts check it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from slipstream.dialects import audiosocket, calls, gradium, kyutai, plain, realtime, twilio, vosk, wyoming
from slipstream.dialects.deepgram import flux, v1
from slipstream.dialects.models import StreamRequest
from slipstream.dialects.protocol import Dialect

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
"""The dialects with their own TCP port, by name."""
