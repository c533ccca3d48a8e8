"""Asterisk's AudioSocket, on TCP: https://docs.asterisk.org/Configuration/Channel-Drivers/AudioSocket/.

A frame is one byte for its kind, two for the length of its payload, big-endian, and the payload. In: the UUID of the
call, 16-bit little-endian PCM at 8 to 192 kHz, DTMF, hang-up. The words go to `/v1/calls?id=UUID`. Out: a hang-up when
the server ends the call.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator

from slipstream.dialects.calls import Call
from slipstream.dialects.formats import PcmStream, check_format
from slipstream.dialects.models import StreamRequest
from slipstream.dialects.order import Order, Table
from slipstream.dialects.protocol import Action, CloseCode, Dialect, Finish, Message, Open, ProtocolError, Send
from slipstream.engine.options import SessionOptions
from slipstream.events import Event, Final

TRACK = "inbound"
HANG_UP = b"\x00\x00\x00"
KINDS = {0x00: "hangup", 0x01: "uuid", 0x03: "dtmf", 0xFF: "error"}
_RATES = (8_000, 12_000, 16_000, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000)
RATES = dict(enumerate(_RATES, start=0x10))
"""The sample rate of each kind of audio, in Hz."""
ORDER: Table = {
    "new": {"uuid": "open", "hangup": "ended", "error": "ended"},
    "open": {"audio": "open", "dtmf": "open", "hangup": "ended", "error": "ended"},
    "ended": {},
}


def open_dialect(request: StreamRequest) -> AudioSocketDialect:
    """Open the dialect for one connection, on the default model."""
    return AudioSocketDialect(request)


class AudioSocketDialect(Dialect):
    """One call of an Asterisk."""

    name = "audiosocket"

    def __init__(self, request: StreamRequest) -> None:
        self._model = request.models[None]
        self._order = Order(ORDER)
        self._unread = b""
        self._call: Call | None = None
        self._pcm: PcmStream | None = None

    def receive(self, message: Message) -> Iterator[Action]:
        """Yield the actions for the next bytes: see `Dialect.receive`."""
        assert isinstance(message, bytes)
        data = self._unread + message
        position = 0
        while len(data) - position >= 3:
            end = position + 3 + int.from_bytes(data[position + 1 : position + 3], "big")
            self._check(data[position])
            if end > len(data):
                break
            yield from self._frame(data[position], data[position + 3 : end])
            position = end
        self._unread = data[position:]

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Publish the messages for an event: see `Dialect.handle`."""
        if self._call is not None:
            yield from self._call.handle(event, channel)
        if isinstance(event, Final):
            yield Send(HANG_UP)

    def error(self, message: str, code: CloseCode) -> bytes:
        """Return a hang-up: the protocol has no errors for Asterisk."""
        return HANG_UP

    # ------------------------------------------------------------------------------------------------------ in detail

    @staticmethod
    def _check(kind: int) -> None:
        if kind not in KINDS and kind not in RATES:
            raise ProtocolError(f"unknown kind of frame 0x{kind:02x}: expected one of AudioSocket")

    def _frame(self, kind: int, payload: bytes) -> Iterator[Action]:
        name = KINDS.get(kind, "audio")
        self._order.follow(name)
        if name == "uuid":
            if len(payload) != 16:
                raise ProtocolError(f"a UUID has 16 bytes, got {len(payload)}")
            self._call = Call(str(uuid.UUID(bytes=payload)), [TRACK])
            yield self._call.publish("start", tracks=[TRACK], model=self._model.model)
            yield Open(SessionOptions(steps=True, low_latency=True), self._model.model)
        elif name == "audio":
            yield from self._audio(RATES[kind], payload)
        elif name == "dtmf":
            if self._call is not None:
                yield self._call.publish("dtmf", track=TRACK, digit=payload[:1].decode("ascii", "replace"))
        else:
            if self._pcm is not None:
                yield from self._pcm.rest(last=True)
            yield Finish()

    def _audio(self, rate: int, payload: bytes) -> Iterator[Action]:
        if self._pcm is None or self._pcm.format.sample_rate != rate:
            if self._pcm is not None:
                yield from self._pcm.rest(last=True)
            self._pcm = PcmStream(check_format("pcm_s16le", rate), self._model.sample_rate)
        yield from self._pcm.audio(payload)
