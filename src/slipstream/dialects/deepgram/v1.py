"""Deepgram's dialect `/v1/listen`: audio in binary messages, JSON in text messages.

In: audio, `KeepAlive`, `Finalize`, `Configure`, `CloseStream`. Out: `Results`, `SpeechStarted`, `UtteranceEnd`,
`Metadata`, `ConfigureSuccess` and `Error`. With `multichannel`, each channel is a separate session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np

from slipstream.dialects.deepgram.channel import Channel, Found
from slipstream.dialects.deepgram.parameters import ENCODINGS, Hints, Parameters, check_texts, request_id
from slipstream.dialects.deepgram.results import Results
from slipstream.dialects.formats import LiveDecoder
from slipstream.dialects.models import StreamInfo, StreamRequest
from slipstream.dialects.order import Order, Table
from slipstream.dialects.protocol import (
    Action,
    Audio,
    Close,
    CloseCode,
    Dialect,
    Finish,
    Flush,
    Message,
    Open,
    ProtocolError,
    Send,
    SetHints,
)
from slipstream.dialects.texts import dump, parse_object
from slipstream.engine.options import SessionOptions
from slipstream.events import EndOfTurn, Event, Final, Flushed, OpenWord, Step, Word

PATH = "/v1/listen"
SILENT_SECONDS = 10.0
"""How long a client may send nothing, neither audio nor `KeepAlive`."""

ORDER: Table = {
    "open": {
        "audio": "open",
        "KeepAlive": "open",
        "Finalize": "open",
        "Configure": "open",
        "CloseStream": "closing",
    },
    "closing": dict.fromkeys(("audio", "KeepAlive", "Finalize", "Configure", "CloseStream"), "closing"),
}
"""What the client may send. After `CloseStream` everything is legal and ignored: it may be in flight."""

_FLAGS = ("detect_entities", "diarize", "filler_words", "mip_opt_out", "no_delay", "numerals", "profanity_filter")
"""Accepted without effect."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a connection.

    Args:
        interim: Whether to send results that are not final.
        punctuate: Whether the transcript keeps punctuation and capitals.
        endpointing: Seconds of pause after which speech is final; None never ends it.
        utterance_end: Seconds without a word after which `UtteranceEnd` comes; None: never.
        vad_events: Whether to send `SpeechStarted`.
        hints: What the client knows about the speech.
    """

    interim: bool = False
    punctuate: bool = False
    endpointing: float | None = 0.01
    utterance_end: float | None = None
    vad_events: bool = False
    hints: Hints = field(default_factory=Hints)


def parse_options(parameters: Parameters) -> Options:
    """Return the options of an address. Raises `ProtocolError` that names an invalid parameter."""
    options = Options(
        interim=parameters.flag("interim_results"),
        punctuate=parse_text_options(parameters),
        endpointing=parameters.milliseconds("endpointing", 0, 60_000, default=0.01),
        utterance_end=parameters.milliseconds("utterance_end_ms", 1_000, 60_000, default=None),
        vad_events=parameters.flag("vad_events"),
        hints=parameters.hints(),
    )
    if options.utterance_end is not None and not options.interim:
        raise ProtocolError("utterance_end_ms needs interim_results=true")
    return options


def parse_text_options(parameters: Parameters) -> bool:
    """Check the parameters of live and pre-recorded text. Returns whether it keeps punctuation and capitals."""
    parameters.refuse("callback", "this server sends results on the connection of the request only")
    for name in _FLAGS:
        parameters.flag(name)
    parameters.choice("diarize_model", ("latest", "v1"))
    return any([parameters.flag(name) for name in ("punctuate", "smart_format", "dictation")])  # noqa: C419, checks all


def open_dialect(request: StreamRequest) -> DeepgramDialect:
    """Open the dialect for one connection. Raises `ProtocolError` that names an invalid parameter."""
    info = request.models[request.get("model")]
    parameters = Parameters(request)
    decoder, channels = parameters.audio(ENCODINGS, info.sample_rate)
    created = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return DeepgramDialect(parse_options(parameters), decoder, channels, info, request_id(request.id), created)


class DeepgramDialect(Dialect):
    """One connection.

    Args:
        options: Its options.
        decoder: Decodes its audio.
        channels: How many sessions it has; None: as many as the audio has channels.
        info: Of the model.
        id: Its UUID.
        created: When it began, as ISO 8601.
    """

    name = "deepgram-v1"
    idle_seconds = SILENT_SECONDS
    idle_close = Close(CloseCode.INTERNAL_ERROR, "NET-0001: neither audio nor a text message was received for 10 s")

    def __init__(
        self, options: Options, decoder: LiveDecoder, channels: int | None, info: StreamInfo, id: str, created: str
    ) -> None:
        self._options, self._decoder, self._info, self._id, self._created = options, decoder, info, id, created
        self._count = channels
        self._results = Results(info.model, id, options.punctuate, options.hints.alternatives)
        self._order = Order(ORDER)
        self._channels: list[Channel] = []
        self._sent = 0  # samples of each channel
        self._digest = hashlib.sha256()
        self._ended = 0
        self._duration = 0.0
        self.headers = {"dg-request-id": id}

    def open(self) -> Iterable[Action]:
        """Open the sessions, unless that depends on the audio: see `Dialect.open`."""
        return self._open(self._count) if self._count else ()

    def receive(self, message: Message) -> Iterator[Action]:
        """Yield the actions for a message: see `Dialect.receive`."""
        if isinstance(message, str):
            yield from self._control(message)
            return
        if self._order.follow("audio") == "closing":
            return
        self._digest.update(message)
        try:
            for piece_CS in self._decoder.push(message):
                yield from self._audio(piece_CS)
        except ProtocolError as error:
            raise ProtocolError(f"DATA-0000: {error}", CloseCode.POLICY_VIOLATION) from error

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Yield the actions for an event: see `Dialect.handle`."""
        state = self._channels[channel]
        if isinstance(event, Step):
            found = state.step(event)
        elif isinstance(event, (Word, OpenWord)):
            found = state.word(event)
        elif isinstance(event, Flushed):
            found = state.flushed(event.time)
        elif isinstance(event, EndOfTurn):
            found = state.end_of_turn(event.time)
        elif isinstance(event, Final):
            return self._final(event, channel)
        else:
            return ()
        return [self._action(one, channel) for one in found] if found else ()

    def error(self, message: str, code: CloseCode) -> None:
        """Return None: the close frame has the reason."""

    # ------------------------------------------------------------------------------------------------------ in detail

    def _open(self, count: int) -> Iterator[Action]:
        quiet = self._options.endpointing
        turns = self._info.turns
        if quiet is not None:  # for models without pause heads
            turns = replace(turns, quiet_seconds=max(quiet, self._info.frame_seconds))
        hints = self._options.hints.for_session()
        for number in range(count):
            self._channels.append(Channel(self._options, self._info))
            options = SessionOptions(partials=False, steps=True, turns=turns, hints=hints)
            yield Open(options, self._info.model, number)

    def _audio(self, piece_CS: Any) -> Iterator[Action]:
        if not self._channels and piece_CS.shape[1]:
            yield from self._open(len(piece_CS))
        self._sent += piece_CS.shape[1]
        for number in range(len(self._channels)):
            yield Audio(piece_CS[number] if piece_CS.shape[1] else np.zeros(0, np.float32), number)

    def _control(self, text: str) -> Iterator[Action]:
        try:
            message = parse_object(text)
            kind = message.get("type")
            if kind == "audio" or not isinstance(kind, str):
                raise ProtocolError(f"unknown type {kind!r:.40}: expected {', '.join(list(ORDER['open'])[1:])}")
            if self._order.state == "closing":
                return
            self._order.follow(kind)
            if kind == "Finalize":
                yield from self._finalize(message.get("channel"))
            elif kind == "Configure":
                yield Send(dump(type="ConfigureSuccess", request_id=self._id, **self._configured(message)))
                for number in range(len(self._channels)):
                    yield SetHints(self._options.hints.for_session(), number)
            elif kind == "CloseStream":
                yield from self._close()
        except ProtocolError as error:
            yield Send(dump(type="Error", variant="SchemaError", description=str(error), message=text[:200]))

    def _finalize(self, channel: Any) -> Iterator[Action]:
        if channel is not None and not (type(channel) is int and 0 <= channel < len(self._channels)):
            raise ProtocolError(f"channel={channel!r:.40}: expected 0 to {len(self._channels) - 1}")
        for piece_CS in self._decoder.flush(last=False):
            yield from self._audio(piece_CS)
        for number, state in enumerate(self._channels):
            if channel in (None, number):
                state.finalize(self._sent / self._info.sample_rate)
                yield Flush(number)

    def _configured(self, message: dict[str, Any]) -> dict[str, Any]:
        keyterms = message.get("keyterms")
        if keyterms is None:
            return {}
        if not isinstance(keyterms, list) or not all(isinstance(term, str) for term in keyterms):
            raise ProtocolError("keyterms: expected a list of strings")
        hints = replace(self._options.hints, keyterms=check_texts("keyterms", keyterms))
        self._options = replace(self._options, hints=hints)
        return {"keyterms": keyterms}

    def _close(self) -> Iterator[Action]:
        for piece_CS in self._decoder.flush(last=True):
            yield from self._audio(piece_CS)
        if not self._channels:
            yield Send(self._metadata())
        yield Finish()

    def _action(self, found: Found, channel: int) -> Action:
        if found.kind == "Flush":
            return Flush(channel, buffered=False)
        if found.kind == "SpeechStarted":
            return Send(dump(type="SpeechStarted", channel=[channel, len(self._channels)], timestamp=found.end))
        if found.kind == "UtteranceEnd":
            return Send(dump(type="UtteranceEnd", channel=[channel, len(self._channels)], last_word_end=found.end))
        return Send(self._results.message(found, channel, len(self._channels)), droppable=not found.is_final)

    def _final(self, event: Final, channel: int) -> Iterator[Action]:
        for found in self._channels[channel].final(event.duration):
            yield self._action(found, channel)
        self._ended += 1
        self._duration = max(self._duration, event.duration)
        if self._ended == len(self._channels):
            yield Send(self._metadata())

    def _metadata(self) -> str:
        return dump(
            type="Metadata",
            transaction_key="deprecated",
            request_id=self._id,
            sha256=self._digest.hexdigest(),
            created=self._created,
            duration=round(self._duration, 3),
            channels=len(self._channels) or 1,
        )
