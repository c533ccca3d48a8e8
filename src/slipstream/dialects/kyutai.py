"""Kyutai's dialect: msgpack maps with a `type`, in binary WebSocket messages.

In: `Init`, `Audio {pcm}`, `OggOpus {data}`, `Marker {id}`. Out: `Ready`, `Step {step_idx, prs, buffered_pcm}`,
`Word {text, start_time}`, `EndWord {stop_time}`, `Marker {id}`, `Error {message}`. The messages are byte for byte those
of the Rust server: fields in its order, times as float64, `prs` as float32. As there, a client may send every message
at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgpack
import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import Resampler
from slipstream.dialects.models import StreamRequest
from slipstream.dialects.ogg import OggOpusDecoder
from slipstream.dialects.packed import octets, parse, samples
from slipstream.dialects.protocol import (
    Action,
    Audio,
    CloseCode,
    Dialect,
    Marker,
    Message,
    Open,
    ProtocolError,
    Restart,
    Send,
    check_audio,
)
from slipstream.engine.options import SessionOptions
from slipstream.events import Event, MarkerReached, OpenWord, Ready, Step, Word

PATH = "/api/asr-streaming"
PCM_RATE = 24_000
"""The rate of `Audio` messages, in Hz. The protocol has no field for it."""


def open_dialect(request: StreamRequest) -> KyutaiDialect:
    """Open the dialect for one connection, on the default model: the reference has no query parameters."""
    info = request.models[None]
    return KyutaiDialect(info.sample_rate, info.model)


class KyutaiDialect(Dialect):
    """One connection in Kyutai's dialect, for a model that takes audio at `sample_rate` Hz."""

    name = "kyutai"

    def __init__(self, sample_rate: int = PCM_RATE, model: str = "") -> None:
        self._model = model
        self._sample_rate = sample_rate
        self._resampler = Resampler(PCM_RATE, sample_rate)
        self._opus: OggOpusDecoder | None = None
        self._open: OpenWord | None = None

    def open(self) -> Iterable[Action]:
        """Open the session: see `Dialect.open`."""
        return (Open(SessionOptions(steps=True), self._model),)

    def receive(self, message: Message) -> Iterator[Action]:
        """Yield the actions for a message: see `Dialect.receive`."""
        if isinstance(message, str):
            return  # ignored, as by the reference
        kind, value = parse(message, _KEY_OF)
        if kind == "Audio":
            for piece_S in samples(value):
                yield Audio(self._resampled(check_audio(piece_S)))
        elif kind == "OggOpus":
            self._opus = self._opus or OggOpusDecoder(self._sample_rate)
            for piece in octets(value):
                for piece_S in self._opus.push(piece):
                    yield Audio(piece_S)
        elif kind == "Marker":
            marker = Marker(_int64(value))
            if self._opus is not None:
                yield Audio(self._opus.flush(last=False))
            elif self._sample_rate != PCM_RATE:
                yield Audio(self._resampler.drain()[0])
            yield marker
        else:
            self._opus = None
            self._resampler = Resampler(PCM_RATE, self._sample_rate)
            yield Restart()

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Send the message for an event: see `Dialect.handle`. Turns, partial words and others have none."""
        message = self._message(event)
        return (Send(message, isinstance(event, Step)),) if message is not None else ()

    def _message(self, event: Event) -> bytes | None:
        if isinstance(event, Step):
            # The reference sends none for a model without pause heads, and its clients index into `prs`.
            return step(event.index, event.pause, event.buffered) if event.pause else None
        if isinstance(event, OpenWord):
            return self._word(event)
        if isinstance(event, Word):
            self._open = None
            return end_word(event.end)
        if isinstance(event, MarkerReached):
            return marker(event.id)
        if isinstance(event, Ready):
            self._open = None
            return ready()
        return None

    def queued(self, position: int) -> bytes:
        """Return a message that the reference does not have; it is sent only where a queue is configured."""
        return _pack({"type": "Queued", "position": position})

    def error(self, message: str, code: CloseCode) -> bytes:
        return error(message)

    def _resampled(self, piece_S: FloatArray) -> FloatArray:
        audio_S: FloatArray = self._resampler.push(piece_S[np.newaxis])[0]
        return audio_S

    def _word(self, opened: OpenWord) -> bytes:
        """Return a word, or what the model has added to the last one, as the reference does."""
        sent = self._open.text if self._open and self._open.start == opened.start else ""
        self._open = opened
        return word(opened.text.removeprefix(sent), opened.start)


def ready() -> bytes:
    """Return the message that the stream has begun."""
    return _pack({"type": "Ready"})


def step(step_idx: int, prs: Sequence[float], buffered_pcm: int) -> bytes:
    """Return the message for a frame: its number in this stream, the pause probabilities, the buffered samples."""
    return b"".join((_STEP, _pack(step_idx), _PRS, _pack_single(list(prs)), _BUFFERED_PCM, _pack(buffered_pcm)))


def word(text: str, start_time: float) -> bytes:
    """Return the message for a word, sent as soon as its text is known."""
    return _pack({"type": "Word", "text": text, "start_time": start_time})


def end_word(stop_time: float) -> bytes:
    """Return the message for the end of the last word."""
    return _pack({"type": "EndWord", "stop_time": stop_time})


def marker(id: int) -> bytes:
    """Return the message that follows all text before a marker."""
    return _pack({"type": "Marker", "id": id})


def error(message: str) -> bytes:
    """Return the message with the reason for closing the connection."""
    return _pack({"type": "Error", "message": message})


# -------------------------------------------------------------------------------------------------------------- details

_STEP = b"\x84\xa4type\xa4Step\xa8step_idx"
_PRS = b"\xa3prs"
_BUFFERED_PCM = b"\xacbuffered_pcm"
_PACKER, _SINGLE = msgpack.Packer(), msgpack.Packer(use_single_float=True)  # a new one for each value takes longer

_KEY_OF = {"Init": None, "Audio": "pcm", "OggOpus": "data", "Marker": "id"}


def _pack(value: Any) -> bytes:
    packed: bytes = _PACKER.pack(value)
    return packed


def _pack_single(values: list[float]) -> bytes:
    packed: bytes = _SINGLE.pack(values)
    return packed


def _int64(id: Any) -> int:
    if type(id) is not int or not -(2**63) <= id < 2**63:
        raise ProtocolError(f"id of a marker: expected a 64-bit integer, got {id!r:.40}")
    return id
