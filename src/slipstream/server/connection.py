"""One connection's life as a table of legal steps: no sockets, no engine, no clock.

Commands come from the client, events from the session, and `Signal`s from the server. What is not in `NEXT` is a
breach of the protocol by the client, or a defect of ours; the two are told apart.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TypeAlias

from slipstream.server.protocol import Audio, Command, Finish, Marker, ProtocolError, Restart
from slipstream.types import Event, Final, Ready


class Phase(Enum):
    """Where a connection stands. The client ends a stream in `FINISHING`, the server in `DRAINING`."""

    WAITING = auto()
    LIVE = auto()
    FINISHING = auto()
    DRAINING = auto()
    CLOSED = auto()


class Signal(Enum):
    """What the server tells a connection: finish what was heard; or it is over, for whatever reason."""

    DRAIN = auto()
    END = auto()


Trigger: TypeAlias = type[Command] | type[Event] | Signal

NEXT: dict[Phase, dict[Trigger, Phase]] = {
    Phase.WAITING: {
        Audio: Phase.WAITING,
        Marker: Phase.WAITING,
        Restart: Phase.WAITING,
        Finish: Phase.FINISHING,
        Ready: Phase.LIVE,
        Final: Phase.CLOSED,
        Signal.DRAIN: Phase.DRAINING,
        Signal.END: Phase.CLOSED,
    },
    Phase.LIVE: {
        Audio: Phase.LIVE,
        Marker: Phase.LIVE,
        Restart: Phase.WAITING,
        Finish: Phase.FINISHING,
        Ready: Phase.LIVE,
        Final: Phase.CLOSED,
        Signal.DRAIN: Phase.DRAINING,
        Signal.END: Phase.CLOSED,
    },
    Phase.FINISHING: {
        Ready: Phase.FINISHING,
        Final: Phase.CLOSED,
        Signal.DRAIN: Phase.FINISHING,
        Signal.END: Phase.CLOSED,
    },
    Phase.DRAINING: {
        Audio: Phase.DRAINING,
        Marker: Phase.DRAINING,
        Restart: Phase.DRAINING,
        Finish: Phase.DRAINING,
        Ready: Phase.DRAINING,
        Final: Phase.CLOSED,
        Signal.DRAIN: Phase.DRAINING,
        Signal.END: Phase.CLOSED,
    },
    Phase.CLOSED: {Signal.END: Phase.CLOSED},
}
"""The whole protocol, both dialects. Events other than `Ready` and `Final` change no phase."""


class Connection:
    """Follows one connection through `NEXT`."""

    def __init__(self) -> None:
        self.phase = Phase.WAITING

    def command(self, command: Command) -> bool:
        """Whether the session shall act on a command: not once the server is ending the stream.

        Raises `ProtocolError` for a command after the client's own `Finish`.
        """
        if type(command) not in NEXT[self.phase]:
            raise ProtocolError(f"{type(command).__name__} after the end of the stream")
        self.phase = NEXT[self.phase][type(command)]
        return self.phase is not Phase.DRAINING

    def event(self, event: Event) -> None:
        """Follow an event of the session."""
        if isinstance(event, (Ready, Final)):
            self.phase = NEXT[self.phase][type(event)]

    def signal(self, signal: Signal) -> None:
        """Follow the server."""
        self.phase = NEXT[self.phase][signal]
