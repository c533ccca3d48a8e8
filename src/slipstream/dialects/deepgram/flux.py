"""Deepgram's dialect Flux, `/v2/listen`: turns with their words, as a state machine.

In: audio in binary messages; `Configure`, `ForceEndTurn` and `CloseStream` in JSON. Out: `Connected`, `TurnInfo` with
the events `StartOfTurn`, `Update`, `EagerEndOfTurn`, `TurnResumed` and `EndOfTurn`, `ConfigureSuccess`,
`ConfigureFailure` and `Error`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from slipstream.dialects.deepgram.parameters import (
    FLUX_ENCODINGS,
    Hints,
    Parameters,
    check_number,
    check_texts,
    request_id,
)
from slipstream.dialects.deepgram.turns import AskFlush, Found, Thresholds, TurnInfo, Turns
from slipstream.dialects.formats import LiveDecoder
from slipstream.dialects.models import StreamInfo, StreamRequest
from slipstream.dialects.order import Order, Table
from slipstream.dialects.protocol import (
    Action,
    Audio,
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
from slipstream.dialects.texts import parse_object, to_json, word_fields
from slipstream.engine.options import SessionOptions
from slipstream.events import EndOfTurn, Event, Final, Flushed, OpenWord, Step, Word
from slipstream.transcript import languages_of

PATH = "/v2/listen"

ORDER: Table = {
    "open": {"audio": "open", "Configure": "open", "ForceEndTurn": "open", "CloseStream": "closing"},
    "closing": dict.fromkeys(("audio", "Configure", "ForceEndTurn", "CloseStream"), "closing"),
}
"""What the client may send. After `CloseStream` everything is legal and ignored: it may be in flight."""

_BOUNDS = {"eot_threshold": (0.5, 1.0), "eager_eot_threshold": (0.3, 0.9), "eot_timeout_ms": (500, 60_000)}
_ERRORS = {
    CloseCode.POLICY_VIOLATION: "UNPARSABLE_CLIENT_MESSAGE",
    CloseCode.INVALID_PAYLOAD: "DATA-0000",
    CloseCode.TRY_LATER: "NO_FREE_SLOT",
}


def open_dialect(request: StreamRequest) -> FluxDialect:
    """Open the dialect for one connection. Raises `ProtocolError` that names an invalid parameter."""
    info = request.models[request.get("model")]
    parameters = Parameters(request)
    for name in ("mip_opt_out", "numerals", "profanity_filter"):
        parameters.flag(name)
    parameters.refuse("multichannel", "Flux takes one channel: use /v1/listen, or a connection for each channel")
    decoder, _ = parameters.audio(FLUX_ENCODINGS, info.sample_rate)
    given = {name: parameters.number(name, *bounds) for name, bounds in _BOUNDS.items()}
    thresholds = _changed(Thresholds(), {name: value for name, value in given.items() if value is not None})
    hints = replace(parameters.hints(), alternatives=1)
    return FluxDialect(thresholds, hints, decoder, info, request_id(request.id))


class FluxDialect(Dialect):
    """One connection.

    Args:
        thresholds: When its turns end.
        hints: What the client knows about the speech.
        decoder: Decodes its audio.
        info: Of the model.
        id: Its UUID.
    """

    name = "flux"

    def __init__(self, thresholds: Thresholds, hints: Hints, decoder: LiveDecoder, info: StreamInfo, id: str) -> None:
        self._hints, self._decoder, self._info, self._id = hints, decoder, info, id
        self._turns = Turns(thresholds, info)
        self._order = Order(ORDER)
        self._sequence = 0
        self._sent = 0  # samples
        self._written: list[str] = []
        self._words: tuple[Word, ...] = ()
        self.headers = {"dg-request-id": id}

    def open(self) -> Iterable[Action]:
        """Greet the client and open the session: see `Dialect.open`."""
        yield Send(self._json("Connected"))
        options = SessionOptions(partials=False, steps=True, hints=self._hints.for_session())
        yield Open(options, self._info.model)

    def receive(self, message: Message) -> Iterator[Action]:
        """Yield the actions for a message: see `Dialect.receive`."""
        if isinstance(message, str):
            yield from self._control(message)
        elif self._order.follow("audio") == "open":
            for piece_CS in self._decoder.push(message):
                self._sent += piece_CS.shape[1]
                yield Audio(piece_CS[0])

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Yield the actions for an event: see `Dialect.handle`."""
        turns = self._turns
        if isinstance(event, Step):
            found = turns.step(event)
        elif isinstance(event, (Word, OpenWord)):
            found = turns.word(event)
        elif isinstance(event, Flushed):
            found = turns.flushed(event.time)
        elif isinstance(event, EndOfTurn):
            found = turns.end_of_turn()
        elif isinstance(event, Final):
            found = turns.final()
        else:
            return ()
        return map(self._action, found)

    def error(self, message: str, code: CloseCode) -> str:
        """Return the fatal error: see `Dialect.error`."""
        return self._json("Error", code=_ERRORS.get(code, "INTERNAL_SERVER_ERROR"), description=message)

    # ------------------------------------------------------------------------------------------------------ in detail

    def _control(self, text: str) -> Iterator[Action]:
        try:
            message = parse_object(text)
            if not isinstance(kind := message.get("type"), str) or kind == "audio":
                raise ProtocolError(f"expected a JSON object with a type: {', '.join(list(ORDER['open'])[1:])}")
            closing = self._order.state == "closing"
            self._order.follow(kind)
        except ProtocolError as error:
            raise ProtocolError(str(error), CloseCode.POLICY_VIOLATION) from error
        if closing:
            return
        if kind == "Configure":
            before = self._hints
            yield Send(self._configure(message))
            if self._hints != before:
                yield SetHints(self._hints.for_session())
            return
        for piece_CS in self._decoder.flush(last=kind == "CloseStream"):
            self._sent += piece_CS.shape[1]
            yield Audio(piece_CS[0])
        if kind == "ForceEndTurn":
            self._turns.force(self._sent / self._info.sample_rate)
            yield Flush()
        else:
            yield Finish()

    def _configure(self, message: dict[str, Any]) -> str:
        try:
            thresholds = message.get("thresholds") or {}
            if not isinstance(thresholds, dict):
                raise ProtocolError("thresholds: expected an object")
            changed = _changed(self._turns.thresholds, thresholds)
            lists: dict[str, Any] = {}
            for name, field in (("keyterms", "keyterms"), ("language_hints", "languages")):
                if (value := message.get(name)) is not None:
                    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
                        raise ProtocolError(f"{name}: expected a list of strings")
                    lists[field] = check_texts(name, value)
        except ProtocolError as error:
            return self._json("ConfigureFailure", code="INVALID_CONFIGURATION", description=str(error))
        self._turns.thresholds, self._hints = changed, replace(self._hints, **lists)
        eager = {} if changed.eager is None else {"eager_eot_threshold": changed.eager}
        return self._json(
            "ConfigureSuccess",
            thresholds={**eager, "eot_threshold": changed.end, "eot_timeout_ms": round(changed.timeout * 1000)},
            keyterms=self._hints.keyterms,
            language_hints=self._hints.languages,
        )

    def _action(self, found: Found) -> Action:
        if isinstance(found, AskFlush):
            return Flush(buffered=False)
        return Send(self._turn_info(found), droppable=found.event == "Update")

    def _turn_info(self, info: TurnInfo) -> str:
        if info.words != self._words:
            same = 0
            while same < min(len(info.words), len(self._words)) and info.words[same] == self._words[same]:
                same += 1
            self._words = info.words
            self._written[same:] = [to_json(word_fields(word)) for word in info.words[same:]]
        head = self._json(
            "TurnInfo",
            event=info.event,
            turn_index=info.turn,
            audio_window_start=round(info.start, 3),
            audio_window_end=round(info.end, 3),
            transcript=" ".join(word.text for word in info.words),
        )
        tail: dict[str, Any] = {"end_of_turn_confidence": round(info.confidence, 4)}
        if info.trigger is not None:
            tail["trigger"] = info.trigger
        if languages := languages_of(info.words):
            tail["languages"] = languages
        if self._hints.languages:
            tail["languages_hinted"] = self._hints.languages
        return f'{head[:-1]},"words":[{",".join(self._written)}],{to_json(tail)[1:]}'

    def _json(self, type: str, **fields: Any) -> str:
        message = {"type": type, "request_id": self._id, "sequence_id": self._sequence, **fields}
        self._sequence += 1
        return to_json(message)


def _changed(thresholds: Thresholds, given: dict[str, Any]) -> Thresholds:
    """Return the thresholds with those given. Raises `ProtocolError` for an invalid one."""
    values: dict[str, Any] = {}
    for name, (low, high) in _BOUNDS.items():
        if name not in given or (given[name] is None and name != "eager_eot_threshold"):
            continue
        value = given[name]
        if value is not None:
            number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")
            values[name] = check_number(name, number, low, high, value)
        else:
            values[name] = None
    changed = Thresholds(
        values.get("eot_threshold", thresholds.end),
        values.get("eager_eot_threshold", thresholds.eager),
        values["eot_timeout_ms"] / 1000 if "eot_timeout_ms" in values else thresholds.timeout,
    )
    if changed.eager is not None and changed.eager > changed.end:
        raise ProtocolError(
            f"eager_eot_threshold={changed.eager:g}: expected at most eot_threshold, which is {changed.end:g}"
        )
    return changed
