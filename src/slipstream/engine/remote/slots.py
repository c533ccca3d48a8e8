"""The slots of an engine whose sessions are in other processes, as arrays: no object per session."""

from __future__ import annotations

import heapq
import math
from collections import deque

import numpy as np

from slipstream.arrays import BoolArray, IntArray
from slipstream.engine.remote.channel import Operation
from slipstream.engine.remote.memory import FRAMES
from slipstream.engine.scheduler import BATCH_WAIT_SECONDS, HOLD_SECONDS, URGENT_WAIT_SECONDS, StepCosts


class Slots:
    """The frames that wait in each slot, and when a step is due, by the rules of `Scheduler`.

    It has no thread and no device, and receives the time as argument.

    Args:
        number: Slots of the engine.

    Attributes:
        owner_B: Who has each slot; -1 for nobody.
        rows: The slots of each session, by the first of them. They get their frames together.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.owner_B = np.full(number, -1, np.int64)
        self.rows: dict[int, tuple[int, ...]] = {}
        self._free = list(range(number))
        self._written_B = np.zeros(number, np.int64)
        self._taken_B = np.zeros(number, np.int64)
        self._since_B = np.full(number, np.inf)  # when the next frame became ready; infinite without one
        self._urgent_B = np.zeros(number, np.bool_)
        self._operations: dict[int, deque[tuple[int, Operation]]] = {}  # each before a frame of this number
        self._costs = StepCosts()
        self._step: tuple[int, float] | None = None
        self._last_urgent = -math.inf

    @property
    def active(self) -> int:
        """Slots in use."""
        return self.number - len(self._free)

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    def admit(self, owner: int, width: int) -> tuple[int, ...]:
        """Give the lowest free slots to a session of an owner, and return them. There must be enough."""
        slots = tuple(heapq.heappop(self._free) for _ in range(width))
        self.rows[slots[0]] = slots
        for slot in slots:
            self.owner_B[slot] = owner
            self._written_B[slot] = self._taken_B[slot] = 0
        return slots

    def release(self, first: int) -> None:
        """Free the slots of a session, and forget their frames and operations."""
        self._operations.pop(first, None)
        for slot in self.rows.pop(first):
            heapq.heappush(self._free, slot)
            self.owner_B[slot] = -1
            self._since_B[slot] = np.inf
            self._urgent_B[slot] = False

    def add(self, slots_N: IntArray, urgent_N: BoolArray, now: float) -> None:
        """Add a frame to each of these slots; a slot may occur more than once."""
        self._written_B += np.bincount(slots_N, minlength=self.number)
        self._since_B[slots_N] = np.minimum(self._since_B[slots_N], now)
        self._urgent_B[slots_N[urgent_N]] = True

    def operate(self, slot: int, operation: Operation) -> None:
        """Run an operation before the next frame that is added to a session's first slot."""
        self._operations.setdefault(slot, deque()).append((int(self._written_B[slot]), operation))

    def delay(self, now: float) -> float | None:
        """Return the seconds until a step is due; None while no slot has a frame."""
        oldest = float(self._since_B.min())
        if oldest == math.inf:
            return None
        ready = int(np.count_nonzero(self._since_B < math.inf))
        if ready == self.active:
            due = oldest
        elif self._urgent_B.any():
            due = oldest if ready >= self.active // 16 else oldest + URGENT_WAIT_SECONDS
        else:
            due = oldest + BATCH_WAIT_SECONDS
        return max(0.0, due - now)

    def patient(self, now: float) -> bool:
        """Return whether no slot was urgent for a while: each frame of a flush follows from the one before."""
        return now - self._last_urgent > HOLD_SECONDS

    def take(self, now: float) -> tuple[IntArray, IntArray, list[tuple[tuple[int, ...], Operation]], float]:
        """Take the frames of the step that is due. The next call of `finish` marks its end.

        Returns:
            The slots in ascending order, the place of each frame in its ring, the operations to run before the step,
            each with the slots of its session, and how long the oldest frame has waited, in seconds.
        """
        slots_N = np.flatnonzero(self._next(now))
        lag = now - float(self._since_B[slots_N].min())
        frames_N = self._taken_B[slots_N]
        operations = []
        for slot in self._operations.keys() & set(slots_N.tolist()) if self._operations else ():
            waiting = self._operations[slot]
            while waiting and waiting[0][0] <= self._taken_B[slot]:
                operations.append((self.rows[slot], waiting.popleft()[1]))
            if not waiting:
                del self._operations[slot]
        self._taken_B[slots_N] += 1
        more_N = self._written_B[slots_N] > self._taken_B[slots_N]
        self._since_B[slots_N] = np.where(more_N, now, np.inf)
        if self._urgent_B[slots_N].any():
            self._last_urgent = now
        self._urgent_B[slots_N] &= more_N
        self._step = (len(slots_N), now)
        return slots_N, frames_N % FRAMES, operations, lag

    def finish(self, now: float) -> None:
        """Record the time of the step."""
        if self._step is not None:
            size, began = self._step
            self._costs.record(size, now - began, now)
            self._step = None

    def _next(self, now: float) -> BoolArray:
        """Return which slots the next step advances: all that have a frame, or only the urgent ones."""
        ready_B: BoolArray = self._since_B < math.inf
        held_B = ready_B & ~self._urgent_B
        urgent, held = int(np.count_nonzero(self._urgent_B)), int(np.count_nonzero(held_B))
        if not urgent or not held:
            return ready_B
        alone, together = self._costs.of(urgent, now), self._costs.of(urgent + held, now)
        if 2 * alone >= together or now + alone > float(self._since_B[held_B].min()) + HOLD_SECONDS:
            return ready_B
        urgent_B: BoolArray = self._urgent_B.copy()
        return urgent_B
