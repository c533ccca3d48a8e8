"""The registry without sockets: one delivery for many wakes, and a drain that ends every member."""

from __future__ import annotations

import asyncio
import threading

from slipstream.connections.limits import Limits
from slipstream.dialects.protocol import Close
from slipstream.server.streams.registry import StreamRegistry


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
        registry, listeners = StreamRegistry(Limits()), [Listener() for _ in range(3)]
        wakes = [registry.waker(listener) for listener in listeners]
        thread = threading.Thread(target=lambda: [wake() for wake in wakes * 2])
        thread.start()
        thread.join()
        before = [listener.deliveries for listener in listeners]
        await asyncio.sleep(0.01)
        return before, [listener.deliveries for listener in listeners]

    assert asyncio.run(scenario()) == ([0, 0, 0], [2, 2, 2])


def test_a_drain_ends_all_members_also_late_ones() -> None:
    async def scenario() -> tuple[bool, list[int], int]:
        registry, early, late = StreamRegistry(Limits(drain_seconds=5)), Listener(), Listener()
        registry.join(early)
        draining = asyncio.create_task(registry.drain())
        await asyncio.sleep(0)
        registry.join(late)
        ended = [len(early.ended), len(late.ended)]
        for listener in (early, late):
            registry.leave(listener)
        return await draining, ended, len(registry)

    assert asyncio.run(scenario()) == (True, [1, 1], 0)


def test_a_drain_has_an_end() -> None:
    async def scenario() -> bool:
        registry = StreamRegistry(Limits(drain_seconds=0.05))
        registry.join(Listener())
        return await registry.drain()

    assert asyncio.run(scenario()) is False
