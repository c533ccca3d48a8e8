"""The states of one connection, as a table: no sockets, no engine, no clock.

Commands come from the client, events from the session, and `Signal`s from the server.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TypeAlias, get_args

from slipstream.dialects.protocol import Command, Finish, Flush, Open, Restart
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


def _staying(phase: Phase) -> dict[Trigger, Phase]:
    """Return the transitions of a phase that only the end of the stream leaves."""
    stays: tuple[Trigger, ...] = (*get_args(Command), Ready, Signal.DRAIN)
    return dict.fromkeys(stays, phase) | {Final: Phase.CLOSED, Signal.END: Phase.CLOSED}


NEXT: dict[Phase, dict[Trigger, Phase]] = {
    Phase.WAITING: _staying(Phase.WAITING) | {Finish: Phase.FINISHING, Ready: Phase.LIVE, Signal.DRAIN: Phase.DRAINING},
    Phase.LIVE: _staying(Phase.LIVE)
    | {
        Open: Phase.WAITING,
        Restart: Phase.WAITING,
        Finish: Phase.FINISHING,
        Signal.DRAIN: Phase.DRAINING,
    },
    Phase.FINISHING: _staying(Phase.FINISHING),
    Phase.DRAINING: _staying(Phase.DRAINING),
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
