"""The protocol of a stream, for all dialects: the commands of a client, and the interface of a dialect."""

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
"""Float audio has full scale 1. Decoders exceed it slightly; integers sent as floats reach thousands."""

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
    """The client violated the protocol. `code`: the close code."""

    def __init__(self, message: str, code: CloseCode = CloseCode.INVALID_PAYLOAD) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Restart:
    """Reset the stream and drop its buffered audio."""


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """More audio: `pcm_S`, mono float32 at the model's sample rate, full scale 1."""

    pcm_S: FloatArray


@dataclass(frozen=True, slots=True)
class Marker:
    """Flush, and respond with `id` after the text of all audio before it."""

    id: int


@dataclass(frozen=True, slots=True)
class Finish:
    """End the stream: send the remaining text and close."""


Command: TypeAlias = Restart | Audio | Marker | Finish

Message: TypeAlias = bytes | str
"""A WebSocket message: binary or text."""


@dataclass(frozen=True, slots=True)
class Close:
    """The end of a connection: close code and reason. `reason`: at most 123 bytes (RFC 6455, section 5.5)."""

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
        """Events that may be dropped for a slow reader: the next one of the type replaces them."""
        ...

    def decode(self, message: Message) -> Iterator[Command]:
        """Yield the commands of a client's message, lazily: audio in pieces of at most about `PIECE_SAMPLES`.

        Decoding one command takes about 0.3 ms however long the message is, so that other connections can be served
        between commands. A command may be empty audio.
        Raises `ProtocolError`, possibly after the first commands.
        """
        ...

    def encode(self, event: Event) -> Message | None:
        """Return the message for an event, or None if this dialect has none."""
        ...

    def queued(self, position: int) -> Message:
        """Return the message that no slot is free, with the place in the queue; 1 is next."""
        ...

    def error(self, message: str, code: CloseCode) -> Message:
        """Return the message with the reason for closing the connection."""
        ...


def check_audio(pcm_S: FloatArray) -> FloatArray:
    """Return `pcm_S`. Raises `ProtocolError` if it has NaN, infinities, or integers stored as floats."""
    if len(pcm_S) and not (peak := float(np.abs(pcm_S).max())) <= LOUDEST:  # false for NaN
        raise ProtocolError(f"audio must be within [-1, 1], but its peak is {peak:.4g}")
    return pcm_S
