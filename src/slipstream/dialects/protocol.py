"""The protocol of a stream, for all dialects: what a dialect may ask of the server, and the interface of a dialect."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.engine.options import SessionOptions
from slipstream.engine.turns import TurnOptions
from slipstream.errors import ConfigError, SlipstreamError
from slipstream.events import Event
from slipstream.hints import Hints

if TYPE_CHECKING:
    from slipstream.dialects.speech.protocol import SpeechDialect

LOUDEST = 100.0
"""Float audio has full scale 1. Decoders exceed it slightly; integers sent as floats reach thousands."""

PIECE_SAMPLES = 6_000
"""How much audio is decoded at a time: 0.25 s."""


class CloseCode(IntEnum):
    """Why the server closes a WebSocket: RFC 6455 section 7.4.1, and 4000 + the HTTP status where that has no code."""

    NORMAL = 1000
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
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


Message: TypeAlias = bytes | str
"""A WebSocket message, binary or text; or bytes of a TCP connection."""


# ------------------------------------------------------------------------------------------------------------ actions


@dataclass(frozen=True, slots=True)
class Open:
    """Open the session of a channel. A second one for the same channel replaces its session.

    Args:
        options: Of the session; the server sets its limits.
        model: Name of the model in `Models`.
        channel: Number of the channel.
    """

    options: SessionOptions
    model: str
    channel: int = 0


@dataclass(frozen=True, slots=True)
class Restart:
    """Reset the stream of a channel and drop its buffered audio."""

    channel: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """More audio of a channel: `pcm_S`, mono float32 at the model's sample rate, full scale 1."""

    pcm_S: FloatArray
    channel: int = 0


@dataclass(frozen=True, slots=True)
class Marker:
    """Respond with `MarkerReached(id)` after the text of all audio before it; flush when no more audio comes."""

    id: int
    channel: int = 0


@dataclass(frozen=True, slots=True)
class Flush:
    """Write all text of the audio so far now; `Flushed` follows. The stream continues exactly as without it.

    Args:
        channel: Number of the channel.
        buffered: Whether the audio that still waits for the model comes before the flush. Otherwise the flush covers
            only what the model has processed, and is possible after `Finish`, too: for a flush that an event requires.
    """

    channel: int = 0
    buffered: bool = True


@dataclass(frozen=True, slots=True)
class SetTurns:
    """Change when turns end, and whether each end flushes, from the next frame that is processed."""

    turns: TurnOptions
    low_latency: bool
    channel: int = 0


@dataclass(frozen=True, slots=True)
class SetHints:
    """Change the keywords, from the next frame that is processed. Other hints hold from the start of a stream."""

    hints: Hints
    channel: int = 0


@dataclass(frozen=True, slots=True)
class Finish:
    """End all channels: write the remaining text. After the last `Final`, the connection closes."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message. `droppable`: it may be dropped for a slow reader, since a later message replaces it."""

    message: Message
    droppable: bool = False


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection after what was sent. `reason`: at most 123 bytes (RFC 6455, section 5.5)."""

    code: CloseCode
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Publish:
    """Send a message to all connections that subscribe to a topic of the same key, and to the topic's webhooks.

    `message`: JSON. `droppable`: it may be dropped for a slow reader, and is kept for no one.
    """

    topic: str
    message: str
    droppable: bool = False


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Receive the messages of a topic, also earlier ones. The connection closes when the topic ends."""

    topic: str


@dataclass(frozen=True, slots=True)
class Forward:
    """Post the messages of a topic to a webhook. It is a `ProtocolError` if the server does not allow it."""

    topic: str
    url: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Continue the connection in a dialect of text to speech, which gets all further messages.

    Only listeners on TCP do this, and only before the first `Open`.
    """

    dialect: SpeechDialect


Command: TypeAlias = Open | Restart | Audio | Marker | Flush | SetTurns | SetHints | Finish
"""What changes a session."""

Action: TypeAlias = Command | Send | Close | Publish | Subscribe | Forward | HandOver
"""What a dialect may ask of the server."""


def make_hints(**fields: Any) -> Hints:
    """Make the hints that a client requests; `fields`: as for `Hints`. Raises `ProtocolError` for invalid ones."""
    try:
        return Hints(**fields)
    except ConfigError as error:
        raise ProtocolError(str(error)) from error


# ------------------------------------------------------------------------------------------------------------ dialects


class Dialect(ABC):
    """Turns the messages of one connection into actions, and the events of its sessions into messages.

    A dialect does no I/O, has no clock and does not see the model: the same messages and events always lead to the
    same actions. Raise `ProtocolError` for what ends the connection; answer other errors with a `Send`.
    """

    name: str
    """Its name in the log."""

    headers: Mapping[str, str] = {}
    """Headers of the response to the request that opens the connection."""

    idle_seconds = math.inf
    """How long the client may send nothing, if that is less than the server's limit."""

    idle_close: Close | None = None
    """How the server then closes; None: as at its own limit."""

    long_text = False
    """Whether text messages carry audio, so that they may be as long as binary ones."""

    def open(self) -> Iterable[Action]:
        """Yield the actions with which a connection begins, such as `Open` for a session that needs no message."""
        return ()

    @abstractmethod
    def receive(self, message: Message) -> Iterator[Action]:
        """Yield the actions for a client's message, lazily: audio in pieces of at most about `PIECE_SAMPLES`.

        Decoding for one action takes about 0.3 ms however long the message is, so that other connections can be served
        between actions. Audio may be empty. Raises `ProtocolError`, possibly after the first actions.
        """

    @abstractmethod
    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Yield the actions for an event of a session; not `Audio`."""

    def queued(self, position: int) -> Message | None:
        """Return the message that no slot is free, with the place in the queue; 1 is next."""
        return None

    @abstractmethod
    def error(self, message: str, code: CloseCode) -> Message | None:
        """Return the message with the reason for closing the connection."""


def check_audio(pcm_S: FloatArray) -> FloatArray:
    """Return `pcm_S`. Raises `ProtocolError` if it has NaN, infinities, or integers stored as floats."""
    # Quick, and enough for most audio: no square exceeds the sum of all.
    if np.vdot(pcm_S, pcm_S) <= LOUDEST:
        return pcm_S
    if not (peak := float(np.abs(pcm_S).max())) <= LOUDEST:  # false for NaN
        raise ProtocolError(f"audio must be within [-1, 1], but its peak is {peak:.4g}")
    return pcm_S


class ResumableDialect(Dialect):
    """A dialect whose stream a client that has lost its connection may continue on another one."""

    session: str
    """Identifies the stream to that client; empty if this one cannot continue."""

    @property
    @abstractmethod
    def position(self) -> int:
        """Samples received so far, in the client's format; 0 where the stream cannot continue after them."""

    @property
    @abstractmethod
    def continues_elsewhere(self) -> bool:
        """Whether the client sends the audio without final text again to the server that it connects to next."""

    @abstractmethod
    def resumed(self) -> Message:
        """Return the first message on a connection that continues the stream."""

    @abstractmethod
    def is_kept(self, message: Message) -> bool:
        """Whether the client gets this message on the next connection."""
