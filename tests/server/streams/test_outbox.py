"""What a slow reader costs."""

from __future__ import annotations

from slipstream.connections.limits import Limits
from slipstream.dialects.protocol import Close, CloseCode, Message
from slipstream.server.streams.outbox import Outbox


class Socket:
    """Takes `room` messages, then its client stops reading."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sent: list[Message | Close] = []

    @property
    def congested(self) -> bool:
        return len(self.sent) >= self.room

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def close(self, close: Close) -> None:
        self.sent.append(close)


def test_messages_are_sent_immediately_when_possible() -> None:
    box = Outbox(socket := Socket(room=9), Limits(droppable_messages=0, unsent_messages=0))
    box.put("step", droppable=True)
    box.put("word")
    box.close(Close(CloseCode.NORMAL))
    assert socket.sent == ["step", "word", Close(CloseCode.NORMAL)]


def test_droppable_messages_are_dropped_first_then_the_connection_ends() -> None:
    box = Outbox(socket := Socket(room=0), Limits(droppable_messages=2, unsent_messages=4))
    for _ in range(10):
        box.put("step", droppable=True)
    assert (len(box), box.dropped, box.overflowed) == (2, 8, False)
    box.put("word")
    box.put("word")
    assert not box.overflowed
    box.put("word")
    assert box.overflowed
    box.put("word")
    assert len(box) == 0
    socket.room = 9
    box.send_on()
    assert socket.sent == [Close(CloseCode.TOO_SLOW, "4 messages are unread: the client is too slow")]


def test_nothing_follows_the_end() -> None:
    box = Outbox(socket := Socket(room=0), Limits())
    box.put("word")
    box.close(Close(CloseCode.NORMAL))
    box.put("late")
    box.close(Close(CloseCode.INTERNAL_ERROR))
    socket.room = 9
    box.send_on()
    assert socket.sent == ["word", Close(CloseCode.NORMAL)]


def test_messages_keep_their_order() -> None:
    box = Outbox(socket := Socket(room=1), Limits())
    for message in ("a", "b", "c"):
        box.put(message)
    socket.room = 2
    box.send_on()
    box.put("d")
    assert socket.sent == ["a", "b"]
    socket.room = 9
    box.put("e")  # not before those that wait
    box.send_on()
    assert socket.sent == ["a", "b", "c", "d", "e"]
