"""The legal order of a dialect's messages, as a table of states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from slipstream.dialects.protocol import ProtocolError

Table: TypeAlias = Mapping[str, Mapping[str, str]]
"""For each state, the messages that a client may send in it, and the state that follows."""


class Order:
    """Follows the messages of one connection through a table.

    Args:
        table: Its first state is the first one of a connection.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self.state = next(iter(table))

    def follow(self, message: str) -> str:
        """Follow a message. Returns the next state. Raises `ProtocolError` for a message that is illegal here."""
        legal = self._table[self.state]
        if message not in legal:
            expected = f"expected {' or '.join(legal)}" if legal else "nothing may follow"
            raise ProtocolError(f"{message!r:.40} in the state {self.state!r}: {expected}")
        self.state = legal[message]
        return self.state
