"""Turns in the event loop: fair, and with rests."""

from __future__ import annotations

import asyncio
import time

from slipstream.connections.fairness import RoundRobin


class Worker:
    """Does `units` of work, each as long as a turn, and notes them in `done`."""

    def __init__(self, name: str, units: int, done: list[str]) -> None:
        self.name, self.units, self.done = name, units, done

    def work(self, until: float) -> bool:
        self.done.append(self.name)
        self.units -= 1
        while time.perf_counter() <= until:
            pass
        return self.units > 0


def test_workers_take_turns_and_the_loop_is_free_in_between() -> None:
    done: list[str] = []

    async def run() -> None:
        turns = RoundRobin()
        for name, units in (("hostile", 20), ("a", 2), ("b", 1)):
            turns.add(Worker(name, units, done))
        # Whatever the event loop does runs between two turns.
        while "b" not in done or done.count("a") < 2:
            length = len(done)
            await asyncio.sleep(0)
            assert len(done) <= length + 1
        gone = next(iter(turns._workers))
        turns.remove(gone)
        assert gone not in turns

    asyncio.run(run())
    assert done[:5] == ["hostile", "a", "b", "hostile", "a"]
    assert len(done) == 5


def test_workers_with_little_to_do_share_a_turn() -> None:
    done: list[int] = []

    class Small:
        def __init__(self, number: int) -> None:
            self.number = number

        def work(self, until: float) -> bool:
            done.append(self.number)
            return False

    async def run() -> None:
        turns = RoundRobin()
        for number in range(5):
            turns.add(Small(number))
        turns.add(next(iter(turns._workers)))  # harmless twice
        while len(done) < 5:
            await asyncio.sleep(0)

    asyncio.run(run())
    assert done == [0, 1, 2, 3, 4]
