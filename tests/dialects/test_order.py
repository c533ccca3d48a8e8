"""The table of a dialect's legal messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.sequences import messages, sequences, state_after

from slipstream.dialects.order import Order, Table
from slipstream.dialects.protocol import ProtocolError

TABLE: Table = {
    "new": {"setup": "open", "ping": "new"},
    "open": {"audio": "open", "ping": "open", "end": "ended"},
    "ended": {},
}


@given(st.data())
def test_every_legal_sequence_passes_and_every_other_message_is_an_error(data: st.DataObject) -> None:
    sequence = data.draw(sequences(TABLE))
    order = Order(TABLE)
    for message in sequence:
        order.follow(message)
    assert order.state == state_after(TABLE, sequence)
    for message in set(messages(TABLE)) - set(TABLE[order.state]):
        with pytest.raises(ProtocolError, match=f"'{message}' in the state '{order.state}'"):
            order.follow(message)
    assert order.state == state_after(TABLE, sequence)


def test_an_error_lists_the_legal_actions() -> None:
    with pytest.raises(ProtocolError, match="'audio' in the state 'new': expected setup or ping"):
        Order(TABLE).follow("audio")
    ended = Order(TABLE)
    for message in ("setup", "end"):
        ended.follow(message)
    with pytest.raises(ProtocolError, match="nothing may follow"):
        ended.follow("audio")
