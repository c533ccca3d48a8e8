"""The Wyoming protocol of Home Assistant, on TCP: https://github.com/OHF-Voice/wyoming.

In: `describe`, `ping`, `transcribe`, `audio-start`, `audio-chunk`, `audio-stop`. Out: `info`, `pong`,
`transcript-start`, `transcript-chunk` for each word, `transcript`, `transcript-stop`, `voice-started`, `voice-stopped`
and `error`. Other events are ignored, as the protocol asks. A connection has one recording, and closes after its
transcript. With `synthesize` or `synthesize-start` it becomes one of text to speech (`dialects/speech/wyoming.py`).

With our own voice activity detection, an end of turn completes a transcript, so that a client need not end the audio.
The transcript after `audio-stop` has the words after the last end of turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from slipstream import __version__
from slipstream.dialects.formats import PcmStream, check_format
from slipstream.dialects.models import DEFAULT_VOICE, StreamRequest, UnknownModel
from slipstream.dialects.order import Order, Table
from slipstream.dialects.protocol import (
    Action,
    CloseCode,
    Dialect,
    Finish,
    HandOver,
    Message,
    Open,
    ProtocolError,
    Send,
    make_hints,
)
from slipstream.dialects.speech.wyoming import OWN as SPEECH_EVENTS
from slipstream.dialects.speech.wyoming import WyomingSpeech, error_event
from slipstream.dialects.wyoming_events import EventReader, WyomingEvent
from slipstream.engine.options import SessionOptions
from slipstream.engine.turns import TurnOptions
from slipstream.events import EndOfTurn, Event, Final, OpenWord, PartialWord, Turn, Word
from slipstream.hints import Hints

ORDER: Table = {
    "idle": {
        "describe": "idle",
        "ping": "idle",
        "select-program": "idle",
        "transcribe": "idle",
        "audio-start": "audio",
        "audio-chunk": "audio",
        "audio-stop": "ended",
    },
    "audio": {"describe": "audio", "ping": "audio", "audio-chunk": "audio", "audio-stop": "ended"},
    "ended": {"describe": "ended", "ping": "ended"},
}
"""The events that a client may send in each state. `audio-start` may be left out: each chunk has its format."""

KNOWN = {event for events in ORDER.values() for event in events}


@dataclass(frozen=True, slots=True)
class WyomingOptions:
    """What the server reports to its clients.

    Args:
        languages: Of its models; Home Assistant offers these.
        own_vad: Whether the server finds the end of a command; otherwise the client does.
    """

    languages: tuple[str, ...] = ("en",)
    own_vad: bool = True


def open_wyoming(options: WyomingOptions, request: StreamRequest) -> WyomingDialect:
    """Open the dialect for one connection."""
    return WyomingDialect(request, options)


class WyomingDialect(Dialect):
    """One connection of a Wyoming client."""

    name = "wyoming"

    def __init__(self, request: StreamRequest, options: WyomingOptions | None = None) -> None:
        self._models, self._speech = request.models, request.speech
        self._options = options or WyomingOptions()
        self._order = Order(ORDER)
        self._reader = EventReader()
        self._in_chunk = False
        self._model = request.models[None]
        self._turns: TurnOptions | None = None
        self._hints = Hints()
        self._format = (0, 0, 0)
        self._pcm: PcmStream | None = None
        self._began_ms = 0
        self._words: list[str] = []
        self._voice = False
        self._ended_at = 0.0

    def receive(self, message: Message) -> Iterator[Action]:
        """Yield the actions for the next bytes: see `Dialect.receive`."""
        assert isinstance(message, bytes)
        for item in self._reader.push(message):
            if isinstance(item, WyomingEvent):
                self._in_chunk = item.type == "audio-chunk"
                if item.type in SPEECH_EVENTS:
                    yield self._hand_over(item)
                elif item.type in KNOWN:
                    yield from self._follow(item)
            elif self._in_chunk and self._pcm is not None:
                yield from self._pcm.audio(item)

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Send the events for an event of the session: see `Dialect.handle`."""
        if isinstance(event, (PartialWord, OpenWord)):
            if self._options.own_vad and not self._voice:
                self._voice = True
                yield _send("voice-started", timestamp=self._milliseconds(event.start))
        elif isinstance(event, Word):
            if not self._words:
                yield _send("transcript-start")
            yield _send("transcript-chunk", text=f" {event.text}" if self._words else event.text)
            self._words.append(event.text)
        elif isinstance(event, EndOfTurn):
            self._ended_at = event.time
        elif isinstance(event, Turn) and self._options.own_vad:
            yield _send("voice-stopped", timestamp=self._milliseconds(max(self._ended_at, event.end)))
            yield from self._transcript()
        elif isinstance(event, Final):
            yield from self._transcript()

    def error(self, message: str, code: CloseCode) -> bytes:
        return error_event(message, code)

    # ------------------------------------------------------------------------------------------------------ in detail

    def _follow(self, event: WyomingEvent) -> Iterator[Action]:
        before, data = self._order.state, event.data
        self._order.follow(event.type)
        if event.type in ("describe", "ping"):
            yield self._answer(event)
        elif event.type == "transcribe":
            self._choose(data)
        elif event.type in ("audio-start", "audio-chunk"):
            yield from self._take_format(data)
        elif event.type == "audio-stop":
            if self._pcm is not None:
                yield from self._pcm.rest(last=True)
            elif before == "idle":
                yield from self._transcript()
            yield Finish()

    def _answer(self, event: WyomingEvent) -> Send:
        """Return the response to an event that is allowed at any time."""
        if event.type == "ping":
            return _send("pong", text=event.data.get("text"))
        return _send("info", **self._info())

    def _hand_over(self, event: WyomingEvent) -> HandOver:
        if self._speech is None:
            raise ProtocolError("this server has no text to speech: start it with --speech MODEL")
        if self._order.state != "idle":
            raise ProtocolError(f"{event.type!r} after audio: open another connection for text to speech")
        return HandOver(WyomingSpeech(event, self._reader, self._speech, self._answer))

    def _choose(self, data: dict[str, Any]) -> None:
        name = data.get("name")
        if name is not None and not isinstance(name, str):
            raise ProtocolError(f"name={name!r:.40}: expected the name of a model")
        try:
            self._model = self._models[name]
        except UnknownModel as error:
            raise ProtocolError(str(error)) from error
        sensitivity = data.get("vad_sensitivity") or "default"
        if sensitivity not in ("default", "relaxed", "aggressive"):
            raise ProtocolError(f"vad_sensitivity={sensitivity!r:.40}: expected default, relaxed or aggressive")
        self._turns = _turns(self._model.turns, sensitivity)
        language = data.get("language")
        self._hints = make_hints(languages=[language] if isinstance(language, str) and language else [])

    def _take_format(self, data: dict[str, Any]) -> Iterator[Action]:
        format = _integer(data, "rate"), _integer(data, "width"), _integer(data, "channels")
        if self._pcm is None:
            rate, width, channels = self._format = format
            if width not in _ENCODINGS:
                raise ProtocolError(f"width={width}: expected {' or '.join(map(str, _ENCODINGS))} bytes")
            self._pcm = PcmStream(check_format(_ENCODINGS[width], rate, channels), self._model.sample_rate)
            if type(timestamp := data.get("timestamp")) is int:
                self._began_ms = timestamp
            options = SessionOptions(low_latency=self._options.own_vad, turns=self._turns, hints=self._hints)
            yield Open(options, self._model.model)
        elif format != self._format:
            raise ProtocolError(f"the format of the audio changed from {self._format} to {format}")

    def _transcript(self) -> Iterator[Action]:
        text = " ".join(self._words)
        streamed = bool(self._words)
        self._words, self._voice = [], False
        yield _send("transcript", text=text)
        if streamed:
            yield _send("transcript-stop")

    def _milliseconds(self, seconds: float) -> int:
        return self._began_ms + round(1000 * seconds)

    def _info(self) -> dict[str, Any]:
        models = [
            {**_artifact(name, f"{name}, streaming"), "languages": list(self._options.languages)}
            for name in self._models
        ]
        program = {
            **_artifact("slipstream", "Streaming speech-to-text with delayed-streams models"),
            "models": models,
            "supports_transcript_streaming": True,
            "requires_external_vad": not self._options.own_vad,
            "prefers_auto_gain_enabled": False,
            "prefers_noise_reduction_enabled": False,
        }
        others = dict.fromkeys(("handle", "intent", "wake", "mic", "snd"), ())
        return {"asr": [program], "tts": self._speech_info(), **others}

    def _speech_info(self) -> list[dict[str, Any]]:
        if (info := self._speech) is None:
            return []
        voices = [
            {**_artifact(name, f"{name}, {info.model}"), "languages": list(info.languages)}
            for name in info.voices or (DEFAULT_VOICE,)
        ]
        description = "Streaming text-to-speech with delayed-streams models"
        return [{**_artifact("slipstream", description), "voices": voices, "supports_synthesize_streaming": True}]


_ENCODINGS = {2: "pcm_s16le", 3: "pcm_s24le"}


def _send(type: str, **data: Any) -> Send:
    return Send(bytes(WyomingEvent(type, data)))


def _artifact(name: str, description: str) -> dict[str, Any]:
    attribution = {"name": "Slipstream", "url": ""}
    return {
        "name": name,
        "description": description,
        "attribution": attribution,
        "installed": True,
        "version": __version__,
    }


def _integer(data: dict[str, Any], name: str) -> int:
    value = data.get(name)
    if type(value) is not int:
        raise ProtocolError(f"{name}={value!r:.40}: expected a whole number")
    return value


def _turns(turns: TurnOptions, sensitivity: str) -> TurnOptions:
    """Return the options for a sensitivity: aggressive ends turns earlier, relaxed only when it is more certain."""
    if sensitivity == "aggressive":
        above = turns.end_above if turns.curve is None else 0.75 * turns.end_above
        return replace(
            turns,
            head=turns.head and turns.head - 1,
            end_above=above,
            resume_below=min(turns.resume_below, above),
            quiet_seconds=0.6 * turns.quiet_seconds,
        )
    if sensitivity == "relaxed":
        return replace(turns, end_above=(1 + turns.end_above) / 2, quiet_seconds=1.6 * turns.quiet_seconds)
    return turns
