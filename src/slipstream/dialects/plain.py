"""The plain dialect: raw PCM in binary messages, JSON in text messages.

In: audio in the format of the address (`?encoding=pcm_s16le&sample_rate=16000`), cut anywhere, and
`{"type": "flush", "id": 1}`, `{"type": "restart"}`, `{"type": "close"}`. Out, one JSON object per message: `ready`,
`queued`, `step`, `partial`, `word`, `end_of_turn`, `turn`, `flushed`, `recovered`, `done` and `error`.

A server that holds streams whose connection was lost sends a `session` in `ready`. The client continues the stream on
another connection with `resume=SESSION&received=N` in the address: N counts the messages it has received, without
`step`, `partial` and the `ready` of such connections. If the stream is still held, `ready` has `resumed`, and the
`position` (in samples) where the audio continues; the messages that the client has not received follow. Otherwise this
is a new stream.

With `history=0` in the address, `history` messages have the text of the last frames, opaque, about once per second. A
new stream that repeats the last audio of another one has `history=FRAME.TEXT.TEXT...` in the address: the number of its
first frame in that stream (12.5 frames per second), and the texts around and after this frame. Its model reads the text
that was written, and its `history` continues the numbers; times count from its own first sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from slipstream.audio import RawFormat
from slipstream.dialects.formats import PcmStream, check_format
from slipstream.dialects.models import StreamInfo, StreamRequest
from slipstream.dialects.order import Order, Table
from slipstream.dialects.protocol import (
    Action,
    CloseCode,
    Finish,
    Marker,
    Message,
    Open,
    ProtocolError,
    Restart,
    ResumableDialect,
    Send,
    make_hints,
)
from slipstream.dialects.texts import dump, parse_json
from slipstream.engine.history import Continuation
from slipstream.engine.options import SessionOptions
from slipstream.errors import ConfigError
from slipstream.events import (
    EndOfTurn,
    Event,
    Final,
    History,
    MarkerReached,
    OpenWord,
    PartialWord,
    Ready,
    Recovered,
    Step,
    Turn,
    Word,
)
from slipstream.hints import MAX_BEAM, Hints, Keyword

PATH = "/v1/stream"
DEFAULT_RATE = 24_000
"""Sample rate of audio whose address gives none, in Hz."""
CONNECTION_PARAMETERS = ("resume", "received", "history")
"""Parameters of a connection, which differ between those of one stream."""
ORDER: Table = {
    "open": {"audio": "open", "flush": "open", "restart": "open", "close": "closing"},
    "closing": dict.fromkeys(("audio", "flush", "restart", "close"), "closing"),
}
"""What the client may send. After `close` everything is legal and ignored: it may be in flight."""


def open_dialect(request: StreamRequest) -> PlainDialect:
    """Open the dialect for one connection. Raises `ProtocolError` that names an unknown or invalid parameter."""
    check_names(request, "encoding", "sample_rate", "channels", *CONNECTION_PARAMETERS)
    format, info = parse_format(dict(request.query)), request.models[request.get("model")]
    hints, continues = parse_hints(request, info), parse_history(request.get("history"))
    return PlainDialect(format, info, request.id, request.session, hints, continues)


def check_names(request: StreamRequest, *names: str) -> None:
    """Refuse parameters other than `names`, the model and the hints: see `StreamRequest.check_names`."""
    request.check_names(*names, "model", "prompt", "delay", "alternatives", repeatable=("keyword", "language"))


def parse_hints(request: StreamRequest, info: StreamInfo) -> Hints:
    """Return the hints of an address. Raises `ProtocolError` that names an invalid parameter."""
    try:
        keywords = [Keyword.parse(text) for text in request.all("keyword")]
    except ConfigError as error:
        raise ProtocolError(str(error)) from error
    return make_hints(
        keywords=keywords,
        prompt=request.get("prompt", ""),
        languages=request.all("language"),
        delay=_delay(request, info),
        alternatives=min(_whole("alternatives", request.get("alternatives") or "1"), MAX_BEAM),
    )


class PlainDialect(ResumableDialect):
    """One stream in the plain dialect.

    Args:
        format: Of its audio.
        info: Of the model.
        id: Identifies it in the server's log.
        session: Identifies it to a client that continues it on another connection.
        hints: What the client knows about the speech.
        continues: The stream that the client continues, if it requests the history of the text.
    """

    name = "plain"

    def __init__(
        self,
        format: RawFormat,
        info: StreamInfo,
        id: str = "",
        session: str = "",
        hints: Hints | None = None,
        continues: Continuation | None = None,
    ) -> None:
        self._info, self._id, self._hints = info, id, hints or Hints()
        self._continues = continues
        self._order = Order(ORDER)
        self._pcm = PcmStream(format, info.sample_rate)
        self._sample_bytes = format.sample_bytes * format.channels
        self._received = 0  # bytes
        self.session = session

    @property
    def position(self) -> int:
        """Samples received so far; 0 after a part of one, since the stream cannot continue there."""
        samples, part = divmod(self._received, self._sample_bytes)
        return 0 if part else samples

    @property
    def continues_elsewhere(self) -> bool:
        """Whether the client requests the history: see `ResumableDialect.continues_elsewhere`."""
        return self._continues is not None

    def resumed(self) -> str:
        """Return `ready` with the position: see `ResumableDialect.resumed`."""
        return self._ready(resumed=True)

    def is_kept(self, message: Message) -> bool:
        """Whether a client gets this message again: see `ResumableDialect.is_kept`."""
        return not (isinstance(message, str) and message.startswith(_REPLACED))

    def open(self) -> Iterable[Action]:
        """Open the session: see `Dialect.open`."""
        return (Open(SessionOptions(steps=True, hints=self._hints, continues=self._continues), self._info.model),)

    def receive(self, message: Message) -> Iterator[Action]:
        """Yield the actions for a message: see `Dialect.receive`."""
        if self._order.state == "closing":
            return
        if isinstance(message, bytes):
            self._received += len(message)
            yield from self._pcm.audio(message)
            return
        kind, id = _control(message)
        if kind not in ("flush", "restart", "close"):
            raise ProtocolError(f"unknown type {kind!r:.40}: expected flush, restart or close")
        self._order.follow(kind)
        if kind == "restart":
            self._pcm.restart()
            self._received = 0
            yield Restart()
            return
        yield from self._pcm.rest(last=kind == "close")
        yield Marker(id) if kind == "flush" else Finish()

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Send the message for an event: see `Dialect.handle`."""
        message = self._message(event)
        return (Send(message, isinstance(event, _DROPPABLE)),) if message is not None else ()

    def _message(self, event: Event) -> str | None:
        if isinstance(event, Step):
            time = round(event.index * self._info.frame_seconds, 3)
            pause = [round(p, 4) for p in event.pause]
            ending = {"end_of_turn": round(event.end_of_turn, 4)} if event.end_of_turn is not None else {}
            return dump(type="step", index=event.index, time=time, pause=pause, buffered=event.buffered, **ending)
        if isinstance(event, (PartialWord, OpenWord)):
            return dump(type="partial", text=event.text, start=event.start)
        if isinstance(event, Word):
            fields = {"text": event.text, "start": event.start, "end": event.end, "confidence": event.confidence}
            missing = {"omission": event.omission} if event.omission else {}
            others = {"alternatives": [asdict(other) for other in event.alternatives]} if event.alternatives else {}
            return dump(type="word", **fields, **missing, **_language(event), **others)
        if isinstance(event, EndOfTurn):
            return dump(type="end_of_turn", time=event.time)
        if isinstance(event, Turn):
            return dump(type="turn", start=event.start, end=event.end, **_language(event))
        if isinstance(event, MarkerReached):
            return dump(type="flushed", id=event.id)
        if isinstance(event, Recovered):
            return dump(type="recovered", time=event.time, reason=event.reason)
        if isinstance(event, History):
            return dump(type="history", end=event.end, text=event.text)
        if isinstance(event, Ready):
            return self._ready(resumed=False)
        if isinstance(event, Final):
            return dump(type="done", duration=event.duration, flush_seconds=event.flush_seconds)
        return None

    def _ready(self, resumed: bool) -> str:
        info, fields = self._info, {}
        if self.session:
            fields = {"session": self.session, "resumed": resumed, "position": self.position if resumed else 0}
        delay = self._hints.delay or info.delay_seconds
        return dump(type="ready", model=info.model, delay=delay, request_id=self._id, **fields)

    def queued(self, position: int) -> str:
        return dump(type="queued", position=position, request_id=self._id)

    def error(self, message: str, code: CloseCode) -> str:
        return dump(type="error", message=message, code=int(code))


def parse_format(query: Mapping[str, str]) -> RawFormat:
    """Return the audio format of an address. Raises `ProtocolError` that names the invalid parameter."""
    numbers = {}
    for name, default in (("sample_rate", DEFAULT_RATE), ("channels", 1)):
        numbers[name] = _whole(name, query.get(name, str(default)))
    return check_format(query.get("encoding", "pcm_s16le"), numbers["sample_rate"], numbers["channels"])


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 6):
        raise ProtocolError(f"{name}={text!r:.40}: expected a whole number")
    return int(text)


def _delay(request: StreamRequest, info: StreamInfo) -> float | None:
    if (text := request.get("delay")) is None:
        return None
    if not info.delays:
        raise ProtocolError(f"delay={text!r:.40}: the model {info.model} has one delay, {info.delay_seconds:g} s")
    try:
        return float(text)
    except ValueError:
        raise ProtocolError(f"delay={text!r:.40}: expected a number of seconds") from None


def parse_history(text: str | None) -> Continuation | None:
    """Return the stream that an address continues; None without the parameter. Raises `ProtocolError`."""
    if text is None:
        return None
    first, *pieces = text.split(".")
    if not (first.isascii() and first.isdecimal() and len(first) <= 10):
        raise ProtocolError(f"history={text!r:.40}: expected the number of a frame, and texts of `history` messages")
    try:
        return Continuation(int(first), tuple(pieces))
    except ConfigError as error:
        raise ProtocolError(str(error)) from error


_DROPPABLE = (Step, PartialWord, OpenWord)
_REPLACED = ('{"type":"step"', '{"type":"partial"')
"""How messages begin that a later one replaces."""


def _language(event: Word | Turn) -> dict[str, Any]:
    if event.language is None:
        return {}
    return {"language": event.language, "language_confidence": event.language_confidence}


def _control(text: str) -> tuple[Any, int]:
    try:
        message = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a JSON message: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"expected a JSON object with a type, got {type(message).__name__}")
    if unknown := message.keys() - {"type", "id"}:
        raise ProtocolError(f"unknown key {unknown.pop()!r:.40}: expected type or id")
    id = message.get("id", 0)
    if type(id) is not int or not -(2**63) <= id < 2**63:
        raise ProtocolError(f"id: expected a 64-bit integer, got {id!r:.40}")
    return message.get("type"), id
