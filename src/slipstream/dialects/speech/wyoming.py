"""Text to speech in the Wyoming protocol, on the connections of `dialects/wyoming.py`.

In: `synthesize`; or `synthesize-start`, `synthesize-chunk` and `synthesize-stop`, for a text that is still being
written. Out: `audio-start`, an `audio-chunk` for each frame, `audio-stop`, and after a streamed text
`synthesize-stopped`. A `synthesize` within a streamed text repeats it for older servers, and is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from slipstream.dialects.models import SpeechInfo
from slipstream.dialects.order import Order, Table
from slipstream.dialects.protocol import CloseCode, Message, ProtocolError, Send
from slipstream.dialects.speech.protocol import Begin, EndText, SpeechAction, SpeechDialect, Spoken, Text
from slipstream.dialects.wyoming_events import EventReader, WyomingEvent
from slipstream.engine.reading import Audio, SpeechEvent
from slipstream.speaker import to_pcm16

ORDER: Table = {
    "idle": {"describe": "idle", "ping": "idle", "synthesize": "speaking", "synthesize-start": "writing"},
    "writing": {
        "describe": "writing",
        "ping": "writing",
        "synthesize-chunk": "writing",
        "synthesize": "writing",
        "synthesize-stop": "speaking",
    },
    "speaking": {"describe": "speaking", "ping": "speaking"},
}
"""The events that a client may send in each state. After the last audio, the state is `idle` again."""

OWN = {"synthesize", "synthesize-start", "synthesize-chunk", "synthesize-stop"}
"""The events of text to speech."""
KNOWN = OWN | {"describe", "ping", "transcribe", "audio-start", "audio-chunk", "audio-stop"}


class WyomingSpeech(SpeechDialect):
    """The rest of a connection of a Wyoming client, from the first event about text to speech.

    Args:
        first: That event.
        reader: Has the bytes after it.
        info: Of the model.
        answer: Returns the response to `describe` and `ping`.
    """

    name = "wyoming-speech"

    def __init__(
        self,
        first: WyomingEvent,
        reader: EventReader,
        info: SpeechInfo,
        answer: Callable[[WyomingEvent], Send],
    ) -> None:
        self._first, self._reader, self._answer = first, reader, answer
        self._order = Order(ORDER)
        self._format = {"rate": info.sample_rate, "width": 2, "channels": 1}
        self._streamed = self._started = False

    def open(self) -> Iterator[SpeechAction]:
        yield from self._follow(self._first)
        yield from self.receive(b"")

    def receive(self, message: Message) -> Iterator[SpeechAction]:
        assert isinstance(message, bytes)
        for item in self._reader.push(message):
            if isinstance(item, WyomingEvent) and item.type in KNOWN:
                yield from self._follow(item)

    def handle(self, event: SpeechEvent | Spoken) -> Iterator[SpeechAction]:
        if not self._started and isinstance(event, Audio | Spoken):
            self._started = True
            yield Send(bytes(WyomingEvent("audio-start", self._format)))
        if isinstance(event, Audio):
            data = {**self._format, "timestamp": round(1000 * event.start)}
            yield Send(bytes(WyomingEvent("audio-chunk", data, to_pcm16(event.samples))))
        elif isinstance(event, Spoken):
            yield Send(bytes(WyomingEvent("audio-stop")))
            if self._streamed:
                yield Send(bytes(WyomingEvent("synthesize-stopped")))
            self._order.state, self._started = "idle", False

    def error(self, message: str, code: CloseCode) -> bytes:
        return error_event(message, code)

    def _follow(self, event: WyomingEvent) -> Iterator[SpeechAction]:
        before, data = self._order.state, event.data
        self._order.follow(event.type)
        if event.type in ("describe", "ping"):
            yield self._answer(event)
        elif event.type == "synthesize-chunk":
            yield Text(_text(data))
        elif event.type == "synthesize-stop":
            yield EndText()
        elif before == "idle":
            self._streamed = event.type == "synthesize-start"
            if (format := data.get("text_format") or "text") != "text":
                raise ProtocolError(
                    f'text_format={format!r:.40}: expected text, in which <break time="1s"/> is a pause'
                )
            yield Begin(_voice(data))
            if not self._streamed:
                yield Text(_text(data))
                yield EndText()


def error_event(message: str, code: CloseCode) -> bytes:
    """Return the event that ends a connection."""
    return bytes(WyomingEvent("error", {"text": message, "code": code.name.lower().replace("_", "-")}))


def _text(data: dict[str, Any]) -> str:
    if not isinstance(text := data.get("text"), str):
        raise ProtocolError(f"text={text!r:.40}: expected a string")
    return text


def _voice(data: dict[str, Any]) -> str | None:
    voice = data.get("voice") or {}
    name = voice.get("name") if isinstance(voice, dict) else voice
    if name is not None and not isinstance(name, str):
        raise ProtocolError(f"voice={voice!r:.40}: expected an object with the name of a voice")
    return name
