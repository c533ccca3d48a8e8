"""Damage valid messages, for fuzzing."""

from __future__ import annotations

import random

from slipstream.dialects.protocol import Message


def mutated(drawn: random.Random, message: bytes) -> bytes:
    """`message`, damaged at up to four places, or left as it is."""
    data = bytearray(message)
    for _ in range(drawn.randrange(5)):
        place = drawn.randrange(len(data) + 1)
        kind = drawn.randrange(5)
        if kind == 0 and place < len(data):
            data[place] = drawn.choice((0, 0x7F, 0x80, 0xC1, 0xDD, 0xFF, drawn.randrange(256)))
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = data[place : place + drawn.randrange(16)]
        elif kind == 3:
            data[place:place] = drawn.randbytes(drawn.randrange(9))
        else:
            del data[place : place + drawn.randrange(16)]
    return bytes(data)


def damaged(drawn: random.Random, message: Message) -> Message:
    if drawn.random() < 0.4:
        return message
    if isinstance(message, bytes):
        return mutated(drawn, message)
    return mutated(drawn, message.encode()).decode("utf-8", "replace")
