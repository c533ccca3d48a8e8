"""The successor of Kyutai's protocol, as Gradium serves it: JSON in text messages, audio in base64.

In: `setup`, then `audio {audio}`, `flush {flush_id}` and `end_of_stream`. Out: `ready`, `step {vad}`, `text {start_s}`,
`end_text {stop_s}`, `flushed {flush_id}`, `end_of_stream` and `error`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from slipstream.dialects.formats import LiveDecoder, PcmStream, WavStream, check_format, ogg_opus
from slipstream.dialects.models import StreamRequest, UnknownModel
from slipstream.dialects.order import Order, Table
from slipstream.dialects.protocol import (
    Action,
    CloseCode,
    Dialect,
    Finish,
    Flush,
    Marker,
    Message,
    Open,
    ProtocolError,
    Send,
    make_hints,
)
from slipstream.dialects.texts import decode_base64, dump, parse_object
from slipstream.engine.options import SessionOptions
from slipstream.events import Event, Final, MarkerReached, OpenWord, Ready, Step, Word
from slipstream.hints import Hints

PATH = "/api/speech/asr"
DEFAULT_MODEL = "default"
"""The name of the default model."""
RATES = {"pcm": 24_000, "pcm_8000": 8_000, "pcm_16000": 16_000, "pcm_24000": 24_000}
"""Sample rates of the formats of 16-bit PCM, in Hz. The others are `wav`, and `opus`, which is an Ogg Opus stream."""
ANY_LANGUAGE = "any"
"""The language of clients that leave it to the model."""
HORIZONS = (0.5, 1.0, 2.0, 3.0)
"""Of the pause heads, in seconds."""
DELAY_FRAMES = (7, 48)
"""Bounds of `delay_in_frames`."""
ORDER: Table = {
    "new": {"setup": "open"},
    "open": {"audio": "open", "flush": "open", "end_of_stream": "ended"},
    "ended": {},
}


def open_dialect(request: StreamRequest) -> GradiumDialect:
    """Open the dialect for one connection. `setup` selects the model."""
    return GradiumDialect(request)


class GradiumDialect(Dialect):
    """One connection in the protocol of Gradium's clients."""

    name = "gradium"
    long_text = True

    def __init__(self, request: StreamRequest) -> None:
        self._models, self._id = request.models, request.id
        self._model = request.models[None]
        self._order = Order(ORDER)
        self._decoder: LiveDecoder
        self._markers = itertools.count()
        self._flush_ids: dict[int, Any] = {}
        self._open: OpenWord | None = None
        self._delay: float | None = None

    def receive(self, message: Message) -> Iterator[Action]:
        """Yield the actions for a message: see `Dialect.receive`."""
        if isinstance(message, bytes):
            raise ProtocolError("expected text messages, got a binary one")
        fields = parse_object(message)
        kind = fields.get("type")
        self._order.follow(kind if isinstance(kind, str) else repr(kind))
        if kind == "setup":
            hints = self._set_up(fields)
            self._delay = hints.delay
            yield Open(SessionOptions(steps=True, partials=False, hints=hints), self._model.model)
        elif kind == "audio":
            for piece in decode_base64(fields.get("audio"), "audio"):
                yield from self._decoder.audio(piece)
        elif kind == "flush":
            flush_id = fields.get("flush_id")
            if not isinstance(flush_id, (str, int)) or len(str(flush_id)) > _FLUSH_ID_CHARACTERS:
                raise ProtocolError(f"flush_id={flush_id!r:.40}: expected at most {_FLUSH_ID_CHARACTERS} characters")
            yield from self._decoder.rest(last=False)
            marker = next(self._markers)
            self._flush_ids[marker] = flush_id
            yield Marker(marker)
            yield Flush()  # the marker would wait for more audio
        else:
            yield from self._decoder.rest(last=True)
            yield Finish()

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Send the message for an event: see `Dialect.handle`. Turns and others have none."""
        message = self._message(event)
        return (Send(message, isinstance(event, Step)),) if message is not None else ()

    def error(self, message: str, code: CloseCode) -> str:
        return dump(type="error", message=message, code=int(code))

    # ------------------------------------------------------------------------------------------------------ in detail

    def _message(self, event: Event) -> str | None:
        if isinstance(event, Step):
            return self._step(event) if event.pause else None
        if isinstance(event, OpenWord):
            return self._text(event)
        if isinstance(event, Word):
            self._open = None
            return dump(type="end_text", stop_s=event.end)
        if isinstance(event, MarkerReached) and event.id in self._flush_ids:
            return dump(type="flushed", flush_id=self._flush_ids.pop(event.id))
        if isinstance(event, Ready):
            info = self._model
            delay = round((self._delay or info.delay_seconds) / info.frame_seconds)
            return dump(
                type="ready",
                request_id=self._id,
                model_name=info.model,
                sample_rate=info.sample_rate,
                frame_size=round(info.sample_rate * info.frame_seconds),
                delay_in_frames=delay,
                delay_in_tokens=delay,  # the name that LiveKit's plugin reads
                text_stream_names=[],
            )
        if isinstance(event, Final):
            return dump(type="end_of_stream")
        return None

    def _step(self, event: Step) -> str:
        pause = event.pause[: len(HORIZONS)]
        frame_seconds = self._model.frame_seconds
        return _step_format(frame_seconds, len(pause)) % (event.index, event.index * frame_seconds, *pause)

    def _text(self, opened: OpenWord) -> str:
        """Return a word, or what the model has added to the last one."""
        sent = self._open.text if self._open and self._open.start == opened.start else ""
        self._open = opened
        return dump(type="text", text=opened.text.removeprefix(sent), start_s=opened.start)

    def _set_up(self, fields: dict[str, Any]) -> Hints:
        name, format = fields.get("model_name", DEFAULT_MODEL), fields.get("input_format", "pcm")
        try:
            self._model = self._models[None if name == DEFAULT_MODEL else str(name)]
        except UnknownModel as error:
            raise ProtocolError(str(error)) from error
        rate = self._model.sample_rate
        if format == "opus":
            self._decoder = ogg_opus(rate)
        elif format == "wav":
            self._decoder = WavStream(rate)
        elif isinstance(format, str) and format in RATES:
            self._decoder = PcmStream(check_format("pcm_s16le", RATES[format]), rate)
        else:
            raise ProtocolError(f"input_format={format!r:.40}: expected one of {', '.join(RATES)}, wav, opus")
        config = fields.get("json_config") or {}
        if isinstance(config, str):  # some clients send it as text
            config = parse_object(config)
        if not isinstance(config, dict):
            return Hints()
        language, frames = config.get("language"), config.get("delay_in_frames")
        languages = [language] if isinstance(language, str) and language not in ("", ANY_LANGUAGE) else []
        if frames is None or not self._model.delays:  # a model with one delay keeps it
            return make_hints(languages=languages)
        if type(frames) is not int or not DELAY_FRAMES[0] <= frames <= DELAY_FRAMES[1]:
            low, high = DELAY_FRAMES
            raise ProtocolError(f"delay_in_frames={frames!r:.40}: expected a whole number from {low} to {high}")
        return make_hints(languages=languages, delay=frames * self._model.frame_seconds)


_FLUSH_ID_CHARACTERS = 64


@cache
def _step_format(frame_seconds: float, heads: int) -> str:
    """Return a `step` with gaps for what differs: its index, the audio so far and the probabilities."""
    vad = [{"horizon_s": horizon, "inactivity_prob": 0} for horizon in HORIZONS[:heads]]
    message = dump(type="step", step_idx=0, step_duration_s=frame_seconds, total_duration_s=0, vad=vad)
    for name, gap in (("step_idx", "%d"), ("total_duration_s", "%.2f"), ("inactivity_prob", "%.4f")):
        message = message.replace(f'"{name}":0', f'"{name}":{gap}')
    return message
