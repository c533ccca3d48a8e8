"""What a client can ask of a stream, whatever the dialect: the commands that all dialects decode to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeAlias

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.errors import SlipstreamError
from slipstream.events import Event

LOUDEST = 100.0
"""Float audio has full scale 1. Decoders overshoot it a little; integers sent as floats reach thousands."""

PIECE_SAMPLES = 6_000
"""How much audio is decoded at a time: 0.25 s."""


class CloseCode(IntEnum):
    """Why the server closes a WebSocket: RFC 6455 section 7.4.1, and 4000 + the HTTP status where that has no code."""

    NORMAL = 1000
    INVALID_PAYLOAD = 1007
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    RESTARTING = 1012
    TRY_LATER = 1013
    TIMED_OUT = 4408
    TOO_SLOW = 4413


class ProtocolError(SlipstreamError):
    """The client broke the protocol; the message says how, `code` is what the socket is closed with."""

    def __init__(self, message: str, code: CloseCode = CloseCode.INVALID_PAYLOAD) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Restart:
    """Begin the stream afresh: what was heard and what waits to be heard is forgotten."""


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """More of the stream: `pcm_S`, mono float32 at the model's sample rate, full scale 1."""

    pcm_S: FloatArray


@dataclass(frozen=True, slots=True)
class Marker:
    """Flush, and answer with `id` once the text of everything before it has been sent."""

    id: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The stream ends here: send what is left of the text and close."""


Command: TypeAlias = Restart | Audio | Marker | Finish

Message: TypeAlias = bytes | str
"""A WebSocket message: binary or text."""


@dataclass(frozen=True, slots=True)
class Close:
    """The end of a connection: what the socket is closed with. `reason`: at most 123 bytes (RFC 6455, section 5.5)."""

    code: CloseCode
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What all streams of a server have in common.

    Args:
        model: Name of the model.
        delay_seconds: How far the text is behind the audio.
        frame_seconds: Length of a frame.
        sample_rate: Of the model's audio, in Hz.
    """

    model: str
    delay_seconds: float
    frame_seconds: float
    sample_rate: int = 24_000


class Dialect(Protocol):
    """Decodes the messages of one connection, and encodes its events."""

    @property
    def name(self) -> str:
        """Its name in the log."""
        ...

    @property
    def droppable(self) -> tuple[type[Event], ...]:
        """Events that a slow reader may miss: the next of their kind makes up for them."""
        ...

    def decode(self, message: Message) -> Iterator[Command]:
        """Give the commands of a client's message, lazily: audio in pieces of at most about `PIECE_SAMPLES`.

        Between two commands little is computed (about 0.3 ms), however much audio a message holds, so that other
        connections can be served in between. A command may be empty audio.
        Raises `ProtocolError`, possibly after the first commands.
        """
        ...

    def encode(self, event: Event) -> Message | None:
        """Give the message that tells an event, or None where this dialect has none."""
        ...

    def queued(self, position: int) -> Message:
        """Say that no slot is free yet, and the place in the queue: 1 is served next."""
        ...

    def error(self, message: str, code: CloseCode) -> Message:
        """Say why the connection is about to be closed."""
        ...


def check_audio(pcm_S: FloatArray) -> FloatArray:
    """Give `pcm_S` back when it can be audio. Raises `ProtocolError` for NaN, infinities and integers in disguise."""
    if len(pcm_S) and not (peak := float(np.abs(pcm_S).max())) <= LOUDEST:  # written so that NaN is caught
        raise ProtocolError(f"audio lies within [-1, 1], but its peak is {peak:.4g}")
    return pcm_S
