"""vLLM's dialect of `/v1/realtime`: 16 kHz PCM in base64, one transcript per utterance.

In: `session.update {model}`, `input_audio_buffer.append {audio}`, `input_audio_buffer.commit {final}`, which starts an
utterance and, with `final`, ends it. Out: `session.created`, `transcription.delta`, `transcription.done` and `error`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from slipstream.audio import RawFormat
from slipstream.dialects.models import StreamInfo, StreamRequest, UnknownModel
from slipstream.dialects.order import Order, Table
from slipstream.dialects.protocol import (
    Action,
    Audio,
    CloseCode,
    Dialect,
    Flush,
    Marker,
    Message,
    Open,
    ProtocolError,
    Send,
)
from slipstream.dialects.realtime.items import Item
from slipstream.dialects.realtime.messages import AudioInput, InvalidMessage, read_message
from slipstream.engine.options import SessionOptions
from slipstream.events import Event, Final, MarkerReached, OpenWord, Step, Word

FORMAT = RawFormat("pcm_s16le", 16_000)
ORDER: Table = {
    "no model": {"session.update": "waiting"},
    "waiting": {
        "session.update": "waiting",
        "input_audio_buffer.append": "waiting",
        "input_audio_buffer.commit": "transcribing",
        "input_audio_buffer.commit final": "waiting",
    },
    "transcribing": {
        "session.update": "transcribing",
        "input_audio_buffer.append": "transcribing",
        "input_audio_buffer.commit": "transcribing",
        "input_audio_buffer.commit final": "waiting",
    },
}
"""The legal order of the client's messages."""


class VllmDialect(Dialect):
    """One connection of a client that speaks vLLM's dialect."""

    name = "vllm"
    long_text = True

    def __init__(self, request: StreamRequest) -> None:
        self._models, self._id, self._time = request.models, request.id, request.time
        self._order = Order(ORDER)
        self._info: StreamInfo | None = None
        self._input = AudioInput(FORMAT, FORMAT.sample_rate)
        self._frames = self._utterance_frames = self._markers = 0
        self._started = 0  # utterances whose text may be sent, of those not done
        self._is_started = False  # whether the one that receives audio is among them
        self._item = Item("", 0.0)
        self._held: deque[str] = deque()  # text that came before the commit

    def open(self) -> Iterable[Action]:
        """Send `session.created`: see `Dialect.open`."""
        return (_message("session.created", **self.created()),)

    def created(self) -> dict[str, Any]:
        """Return the fields of `session.created`."""
        return {"id": f"sess-{self._id}", "created": self._time}

    def receive(self, message: Message) -> Iterator[Action]:
        """Yield the actions for a message: see `Dialect.receive`. An invalid one is answered by an `error`."""
        try:
            if isinstance(message, bytes):
                raise InvalidMessage("messages are JSON in text messages, not binary", "invalid_event")
            fields = read_message(message)
            kind = fields.get("type")
            if kind == "session.update":
                yield from self._update(fields)
            elif kind == "input_audio_buffer.append":
                yield from self._append(fields)
            elif kind == "input_audio_buffer.commit":
                yield from self._commit(fields)
            else:
                raise InvalidMessage(f"unknown type {kind!r:.80}", "unknown_event")
        except InvalidMessage as error:
            yield _message("error", error=str(error), code=error.code)

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Yield the actions for an event: see `Dialect.handle`."""
        if isinstance(event, Step):
            self._frames = event.index
        elif isinstance(event, (OpenWord, Word)):
            if delta := self._item.add(event):
                if self._started:
                    return (_message("transcription.delta", delta=delta),)
                self._held.append(delta)
        elif isinstance(event, (MarkerReached, Final)) and self._started:
            return self._done()
        return ()

    def error(self, message: str, code: CloseCode) -> str:
        """Return the last error of a connection: see `Dialect.error`."""
        return json.dumps({"type": "error", "error": message, "code": "processing_error"})

    def _update(self, fields: dict[str, Any]) -> Iterator[Action]:
        model = fields.get("model")
        if not isinstance(model, str) or not model:
            raise InvalidMessage("model: expected the name of a model", "invalid_event")
        try:
            info = self._models[model]
        except UnknownModel as error:
            raise InvalidMessage(str(error), "model_not_found") from error
        if self._info is not None and info is not self._info:
            raise InvalidMessage(f"the model of a connection cannot change from {self._info.model}", "invalid_event")
        self._follow("session.update")
        if self._info is None:
            self._info = info
            self._input = AudioInput(FORMAT, info.sample_rate)
            yield Open(SessionOptions(partials=False, steps=True), info.model)

    def _append(self, fields: dict[str, Any]) -> Iterator[Action]:
        audio = fields.get("audio")
        if not isinstance(audio, str) or not audio:
            raise InvalidMessage("audio: expected text in base64, not empty", "invalid_audio")
        self._follow("input_audio_buffer.append")
        try:
            for pcm_S in self._input.decode(audio):
                yield Audio(pcm_S)
        except InvalidMessage as error:
            raise InvalidMessage(str(error), "invalid_audio") from error

    def _commit(self, fields: dict[str, Any]) -> Iterator[Action]:
        final = fields.get("final", False)
        if not isinstance(final, bool):
            raise InvalidMessage(f"final: expected true or false, got {final!r:.40}", "invalid_event")
        self._follow("input_audio_buffer.commit final" if final else "input_audio_buffer.commit")
        if not self._is_started:
            self._is_started = True
            self._started += 1
            if self._started == 1 and self._held:
                yield _message("transcription.delta", delta="".join(self._held))
                self._held.clear()
        if final:
            self._is_started = False
            yield Audio(self._input.flush())
            self._markers += 1
            yield Marker(self._markers)
            yield Flush()

    def _done(self) -> Iterator[Action]:
        """End the utterance whose text is out."""
        item, self._item = self._item, Item("", 0.0)
        # Counted are frames of audio and words.
        prompt, self._utterance_frames = self._frames - self._utterance_frames, self._frames
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": len(item.words),
            "total_tokens": prompt + len(item.words),
        }
        self._started -= 1
        yield _message("transcription.done", text=item.transcript, usage=usage)

    def _follow(self, message: str) -> None:
        try:
            self._order.follow(message)
        except ProtocolError as error:
            code = "model_not_validated" if self._info is None else "invalid_event"
            raise InvalidMessage(str(error), code) from error


def is_vllm(message: Message) -> bool:
    """Return whether a client's first message is one of vLLM's clients: the model is at the top level."""
    if isinstance(message, bytes):
        return False
    try:
        fields = read_message(message)
    except InvalidMessage:
        return False
    return fields.get("type") == "session.update" and "model" in fields and "session" not in fields


def _message(kind: str, **fields: Any) -> Send:
    return Send(json.dumps({"type": kind, **fields}, separators=(",", ":")))
