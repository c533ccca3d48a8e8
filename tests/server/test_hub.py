"""The hub without sockets: one delivery for many wakes, and a drain that forgets nobody."""

from __future__ import annotations

import asyncio
import threading

from slipstream.server.hub import Hub
from slipstream.server.limits import Limits
from slipstream.server.protocol import Close


class Listener:
    def __init__(self) -> None:
        self.deliveries = 0
        self.ended: list[Close] = []

    def deliver(self) -> None:
        self.deliveries += 1

    def sweep(self, now: float) -> None:
        pass

    def end(self, close: Close) -> None:
        self.ended.append(close)


def test_wakes_of_other_threads_are_delivered_in_the_loop() -> None:
    async def scenario() -> tuple[list[int], list[int]]:
        hub, listeners = Hub(Limits()), [Listener() for _ in range(3)]
        wakes = [hub.waker(listener) for listener in listeners]
        thread = threading.Thread(target=lambda: [wake() for wake in wakes * 2])
        thread.start()
        thread.join()
        before = [listener.deliveries for listener in listeners]
        await asyncio.sleep(0.01)
        return before, [listener.deliveries for listener in listeners]

    assert asyncio.run(scenario()) == ([0, 0, 0], [2, 2, 2])


def test_a_drain_ends_all_and_who_comes_too_late() -> None:
    async def scenario() -> tuple[bool, list[int], int]:
        hub, early, late = Hub(Limits(drain_seconds=5)), Listener(), Listener()
        hub.join(early)
        draining = asyncio.create_task(hub.drain())
        await asyncio.sleep(0)
        hub.join(late)
        ended = [len(early.ended), len(late.ended)]
        for listener in (early, late):
            hub.leave(listener)
        return await draining, ended, len(hub)

    assert asyncio.run(scenario()) == (True, [1, 1], 0)


def test_a_drain_has_an_end() -> None:
    async def scenario() -> bool:
        hub = Hub(Limits(drain_seconds=0.05))
        hub.join(Listener())
        return await hub.drain()

    assert asyncio.run(scenario()) is False
