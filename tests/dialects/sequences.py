"""Random legal sequences from the table of a dialect's legal messages."""

from __future__ import annotations

from hypothesis import strategies as st

from slipstream.dialects.order import Table


@st.composite
def sequences(draw: st.DrawFn, table: Table, most: int = 12) -> list[str]:
    """Draw messages that are legal one after another, from the first state of the table."""
    state, sequence = next(iter(table)), []
    for _ in range(draw(st.integers(0, most))):
        if not table[state]:
            break
        message = draw(st.sampled_from(sorted(table[state])))
        state = table[state][message]
        sequence.append(message)
    return sequence


def state_after(table: Table, sequence: list[str]) -> str:
    """Return the state that a sequence ends in."""
    state = next(iter(table))
    for message in sequence:
        state = table[state][message]
    return state


def messages(table: Table) -> list[str]:
    """Return all messages of a table."""
    return sorted({message for legal in table.values() for message in legal})
