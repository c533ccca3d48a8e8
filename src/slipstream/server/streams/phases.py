"""The states of one connection, as a table: no sockets, no engine, no clock.

Commands come from the client, events from the session, and `Signal`s from the server.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TypeAlias

from slipstream.dialects.protocol import Audio, Command, Finish, Flush, Marker, Open, Restart, SetHints, SetTurns
from slipstream.events import Event, Final, Ready


class Phase(Enum):
    """The state of a connection. `FINISHING`: the client has ended the stream; `DRAINING`: the server has."""

    WAITING = auto()
    LIVE = auto()
    FINISHING = auto()
    DRAINING = auto()
    CLOSED = auto()


class Signal(Enum):
    """A signal of the server: finish the audio received so far; or the stream has ended, for any reason."""

    DRAIN = auto()
    END = auto()


Trigger: TypeAlias = type[Command] | type[Event] | Signal

NEXT: dict[Phase, dict[Trigger, Phase]] = {
    Phase.WAITING: {
        Open: Phase.WAITING,
        Audio: Phase.WAITING,
        Marker: Phase.WAITING,
        Flush: Phase.WAITING,
        SetTurns: Phase.WAITING,
        SetHints: Phase.WAITING,
        Restart: Phase.WAITING,
        Finish: Phase.FINISHING,
        Ready: Phase.LIVE,
        Final: Phase.CLOSED,
        Signal.DRAIN: Phase.DRAINING,
        Signal.END: Phase.CLOSED,
    },
    Phase.LIVE: {
        Open: Phase.WAITING,
        Audio: Phase.LIVE,
        Marker: Phase.LIVE,
        Flush: Phase.LIVE,
        SetTurns: Phase.LIVE,
        SetHints: Phase.LIVE,
        Restart: Phase.WAITING,
        Finish: Phase.FINISHING,
        Ready: Phase.LIVE,
        Final: Phase.CLOSED,
        Signal.DRAIN: Phase.DRAINING,
        Signal.END: Phase.CLOSED,
    },
    Phase.FINISHING: {
        Open: Phase.FINISHING,
        Audio: Phase.FINISHING,
        Marker: Phase.FINISHING,
        Flush: Phase.FINISHING,
        SetTurns: Phase.FINISHING,
        SetHints: Phase.FINISHING,
        Restart: Phase.FINISHING,
        Finish: Phase.FINISHING,
        Ready: Phase.FINISHING,
        Final: Phase.CLOSED,
        Signal.DRAIN: Phase.FINISHING,
        Signal.END: Phase.CLOSED,
    },
    Phase.DRAINING: {
        Open: Phase.DRAINING,
        Audio: Phase.DRAINING,
        Marker: Phase.DRAINING,
        Flush: Phase.DRAINING,
        SetTurns: Phase.DRAINING,
        SetHints: Phase.DRAINING,
        Restart: Phase.DRAINING,
        Finish: Phase.DRAINING,
        Ready: Phase.DRAINING,
        Final: Phase.CLOSED,
        Signal.DRAIN: Phase.DRAINING,
        Signal.END: Phase.CLOSED,
    },
    Phase.CLOSED: {Signal.END: Phase.CLOSED},
}
"""The protocol, for all dialects. Events other than `Ready` and `Final` change no phase."""


class Connection:
    """Follows one connection through `NEXT`."""

    def __init__(self) -> None:
        self.phase = Phase.WAITING

    @property
    def ended(self) -> bool:
        """Whether the client or the server has ended the stream: further messages of the client are ignored.

        Any client may have audio in flight when a stream ends.
        """
        return self.phase in (Phase.FINISHING, Phase.DRAINING, Phase.CLOSED)

    @property
    def over(self) -> bool:
        """Whether the stream has ended: no events follow."""
        return self.phase is Phase.CLOSED

    def command(self, command: Command) -> bool:
        """Follow a command. Returns whether the session must act on it.

        After the end of the stream it must not, except for a flush of what the model has processed: the text of the
        buffered audio is still to come.
        """
        ended, over = self.ended, self.over
        self.phase = NEXT[self.phase][type(command)]
        return not ended or (isinstance(command, Flush) and not command.buffered and not over)

    def event(self, event: Event) -> None:
        """Follow an event of the session."""
        if isinstance(event, (Ready, Final)):
            self.phase = NEXT[self.phase][type(event)]

    def signal(self, signal: Signal) -> None:
        """Follow a signal of the server."""
        self.phase = NEXT[self.phase][signal]
