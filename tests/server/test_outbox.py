"""What a slow reader costs."""

from __future__ import annotations

import asyncio

from slipstream.server.limits import Limits
from slipstream.server.outbox import Outbox
from slipstream.server.protocol import Close, CloseCode


def test_droppable_messages_go_first_then_the_reader() -> None:
    box = Outbox(Limits(droppable_messages=2, unsent_messages=4))
    for _ in range(10):
        box.put("step", droppable=True)
    assert (len(box), box.dropped, box.overflowed) == (2, 8, False)
    box.put("word")
    box.put("word")
    assert not box.overflowed
    box.put("word")
    assert box.overflowed
    box.put("word")
    assert asyncio.run(_take(box, 1)) == [Close(CloseCode.TOO_SLOW, "4 messages were not read in time")]
    assert len(box) == 0


def test_nothing_follows_the_end() -> None:
    box = Outbox(Limits())
    box.put("word")
    box.close(Close(CloseCode.NORMAL))
    box.put("late")
    box.close(Close(CloseCode.INTERNAL_ERROR))
    assert asyncio.run(_take(box, 2)) == ["word", Close(CloseCode.NORMAL)]
    assert len(box) == 0


def test_messages_keep_their_order() -> None:
    async def scenario() -> list[object]:
        box = Outbox(Limits())
        reader = asyncio.create_task(_take(box, 3))
        await asyncio.sleep(0)
        for message in ("a", "b", "c"):
            box.put(message)
            await asyncio.sleep(0)
        return await reader

    assert asyncio.run(scenario()) == ["a", "b", "c"]


async def _take(box: Outbox, count: int) -> list[object]:
    return [await box.get() for _ in range(count)]
