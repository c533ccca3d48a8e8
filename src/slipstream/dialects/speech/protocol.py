"""Text to speech on a connection: what a dialect may ask of the server, and the interface of a dialect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from slipstream.dialects.protocol import Close, CloseCode, Message, Send
from slipstream.engine.reading import SpeechEvent
from slipstream.model.speech import Voice


@dataclass(frozen=True, slots=True)
class Begin:
    """Open a session. `voice`: its name, or the voice; None for the server's default."""

    voice: str | Voice | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """More text of the session, cut anywhere."""

    text: str


@dataclass(frozen=True, slots=True)
class FlushText:
    """Speak the text so far to its end, without waiting for more, which may follow."""


@dataclass(frozen=True, slots=True)
class EndText:
    """There is no more text: the session is read to its end, and `Spoken` follows."""


SpeechAction: TypeAlias = Begin | Text | FlushText | EndText | Send | Close
"""What a dialect may ask of the server."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """The session has given all its audio. Another may begin."""


class SpeechDialect(ABC):
    """Turns the messages of one connection into actions, and the events of its sessions into messages.

    As `Dialect`, it does no I/O, has no clock and does not see the model. A connection has one session at a time.
    """

    name: str
    """Its name in the log."""

    def open(self) -> Iterable[SpeechAction]:
        """Yield the actions with which a connection begins."""
        return ()

    @abstractmethod
    def receive(self, message: Message) -> Iterator[SpeechAction]:
        """Yield the actions for a client's message. Raises `ProtocolError`."""

    @abstractmethod
    def handle(self, event: SpeechEvent | Spoken) -> Iterable[SpeechAction]:
        """Yield the actions for an event of the session."""

    @abstractmethod
    def error(self, message: str, code: CloseCode) -> Message | None:
        """Return the message with the reason for closing the connection."""
