"""The table of legal steps."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from slipstream.dialects.protocol import Audio, Command, Finish, Flush, Marker, Open, Restart, SetTurns
from slipstream.engine.options import SessionOptions
from slipstream.engine.turns import TurnOptions
from slipstream.events import Final, Ready, Step
from slipstream.server.streams.phases import NEXT, Connection, Phase, Signal

AUDIO = Audio(np.zeros(1, np.float32))
COMMANDS: list[Command] = [
    AUDIO,
    Marker(1),
    Flush(),
    Restart(),
    Open(SessionOptions(), "tiny"),
    SetTurns(TurnOptions(), low_latency=True),
    Finish(),
]


def test_a_stream_from_the_first_frame_to_the_last_word() -> None:
    connection = Connection()
    assert connection.command(AUDIO)  # a client may send audio before Ready
    connection.event(Ready())
    assert connection.phase is Phase.LIVE
    assert connection.command(Marker(1))
    assert connection.command(Restart())
    connection.event(Ready())
    connection.event(Step(1, (), 0))
    assert connection.command(Finish())
    connection.event(Final(1.0, 0.1))
    assert connection.phase is Phase.CLOSED


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_after_the_clients_end_are_ignored(command: Command) -> None:
    connection = Connection()
    connection.command(Finish())
    connection.event(Ready())  # a clip whose end came before its slot
    assert connection.ended
    assert not connection.command(command)
    connection.event(Final(1.0, 0.1))
    assert connection.phase is Phase.CLOSED


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_after_the_servers_end_are_ignored(command: Command) -> None:
    connection = Connection()
    connection.event(Ready())
    connection.signal(Signal.DRAIN)
    assert connection.ended
    assert not connection.command(command)
    connection.event(Final(1.0, 0.1))
    assert connection.phase is Phase.CLOSED


def test_what_the_model_has_processed_can_be_flushed_until_the_last_word() -> None:
    connection = Connection()
    connection.command(Finish())
    assert connection.command(Flush(buffered=False))
    connection.event(Final(1.0, 0.1))
    with pytest.raises(KeyError):
        connection.command(Flush(buffered=False))


def test_every_phase_can_end_and_every_command_is_considered() -> None:
    for phase, row in NEXT.items():
        assert row[Signal.END] is Phase.CLOSED
        if phase in (Phase.WAITING, Phase.LIVE, Phase.FINISHING, Phase.DRAINING):
            assert set(get_args(Command)) <= row.keys()
