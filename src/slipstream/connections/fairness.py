"""Fair scheduling of connections in the event loop: those with much work take turns, a little at a time."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

TURN_SECONDS = 0.0005
"""How long one turn may take. Work that cannot be interrupted (a piece of audio, a frame) takes less."""
REST_SECONDS = 0.001
"""Least time the event loop is free after the turns: timers are not finer."""
REST_RATIO = 3.0
"""Time the event loop is free after the turns, relative to their time."""


class Worker(Protocol):
    """An object with more work than fits in one turn."""

    def work(self, until: float) -> bool:
        """Work until the time `until` (`time.perf_counter`) or the end. Returns whether there is more to do now."""
        ...


class RoundRobin:
    """Schedules turns of workers, one after another, and leaves the event loop free between them.

    Workers with little work share a turn. All workers together take at most a quarter of the event loop's time, however
    many they are, and other code waits for at most one turn.
    """

    def __init__(self) -> None:
        self._workers: dict[Worker, None] = {}  # in the order of their turns
        self._next_turn: asyncio.TimerHandle | None = None

    def __contains__(self, worker: object) -> bool:
        return worker in self._workers

    def add(self, worker: Worker) -> None:
        """Schedule turns of the worker until its work is done. Does nothing if they are scheduled already."""
        self._workers.setdefault(worker)
        self._schedule(REST_SECONDS)

    def remove(self, worker: Worker) -> None:
        """Cancel the turns of the worker, if any."""
        self._workers.pop(worker, None)

    def _schedule(self, rest: float) -> None:
        if self._next_turn is None and self._workers:
            self._next_turn = asyncio.get_running_loop().call_later(rest, self._turn)

    def _turn(self) -> None:
        self._next_turn = None
        began = time.perf_counter()
        until = began + TURN_SECONDS
        try:
            while self._workers and time.perf_counter() < until:
                worker = next(iter(self._workers))
                del self._workers[worker]
                if worker.work(until):
                    self._workers.setdefault(worker)
        finally:
            self._schedule(max(REST_SECONDS, REST_RATIO * (time.perf_counter() - began)))
