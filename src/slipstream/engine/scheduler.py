"""Assign slots to sessions and time the steps. It has no thread and no device, and receives the time as argument."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from slipstream.engine.session import Session
from slipstream.engine.waiting import WaitingSessions, describe_shortage
from slipstream.errors import Overloaded

BATCH_WAIT_SECONDS = 0.01
"""How long a frame may wait for frames of other sessions. A step takes about as long for one slot as for many, so one
full step is cheaper than two half-empty ones. The limit, an eighth of a frame, bounds the added latency."""

URGENT_WAIT_SECONDS = 0.004
"""How long an urgent frame waits for a sixteenth of the sessions. When hundreds are behind, steps for a few of them
would use up the time that they need to catch up."""

MARKER_WAIT_SECONDS = 0.2
"""How long a marker waits for more audio before its text is flushed: two and a half frames, so that a live client that
continues to speak is not flushed in the middle of a word."""

HOLD_SECONDS = 0.06
"""How long a frame may wait while urgent sessions take steps before it: three quarters of a frame, so that its step
begins before the session's next frame arrives, and no session falls behind because of another one's flush."""

COST_KEPT_SECONDS = 10.0
"""How long the measured time of a step is used: one slow step must not exclude steps of its size forever."""


class Scheduler:
    """Admits sessions to slots and decides each step. All times are `now` of one steady clock, in seconds.

    A step takes every session that has a frame. It runs as soon as every admitted session has a frame, or one is
    urgent (behind its audio, or with a flush to do; among many sessions it waits up to `URGENT_WAIT_SECONDS` for
    others), or one frame has waited for `batch_wait`. Where steps for a few sessions measurably take less than half of
    a step for all, the urgent ones run first, as long as no other frame has waited for `HOLD_SECONDS`. Sessions get
    the lowest free slot, so that a runner can compute only the first part of its batch.
    """

    def __init__(
        self,
        slots: int,
        *,
        max_waiting: int = 64,
        batch_wait: float = BATCH_WAIT_SECONDS,
        marker_wait: float = MARKER_WAIT_SECONDS,
    ) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.batch_wait = batch_wait
        self.marker_wait = marker_wait
        self._free = list(range(slots))
        self._admitted: set[Session] = set()
        self._waiting = WaitingSessions[Session]()
        self._ready: dict[Session, float] = {}  # in the order of becoming ready: since when
        self._urgent: set[Session] = set()
        self._markers: dict[Session, float] = {}  # in the order of time: when to flush for each session's markers
        self._costs = StepCosts()
        self._step: tuple[int, float] | None = None  # number of sessions of the current step, and when it began

    @property
    def active(self) -> int:
        """Slots in use."""
        return self.slots - len(self._free)

    @property
    def free(self) -> Sequence[int]:
        """Slots that nobody has."""
        return self._free

    @property
    def waiting(self) -> int:
        """Sessions that wait for a slot."""
        return len(self._waiting)

    def position(self, session: Session) -> int:
        """Return the session's place in the queue, from 1; 0 for one that does not wait."""
        return self._waiting.position(session)

    def shortage(self, session: Session) -> str:
        """Return why the session gets no slots now."""
        return describe_shortage(session.width, [(len(self._free), self.slots)])

    def add(self, session: Session, now: float, wait: float = 0.0) -> None:
        """Give the session the slots that it needs, or a place in the queue for up to `wait` seconds.

        Raises `Overloaded` when there are not enough and it may not wait, or too many wait already.
        """
        if self._waiting.admits(session.width, len(self._free)):
            self._admit(session, now)
        elif wait <= 0:
            raise Overloaded(self.shortage(session))
        elif len(self._waiting) >= self.max_waiting:
            raise Overloaded(f"{self.shortage(session)}; {len(self._waiting)} sessions wait already")
        else:
            self._waiting.add(session, session.width, now + wait)

    def remove(self, session: Session, now: float) -> list[Session]:
        """Free the session's slots or its place in the queue. Returns the waiting sessions that get slots."""
        if self._waiting.remove(session) or session not in self._admitted:
            session.release()
            return self._admit_waiting(now)
        self._admitted.discard(session)
        self._ready.pop(session, None)
        self._urgent.discard(session)
        self._markers.pop(session, None)
        for slot in session.slots:
            heapq.heappush(self._free, slot)
        session.release()
        return self._admit_waiting(now)

    def refresh(self, session: Session, now: float) -> None:
        """Update a session after audio, a request or a step has changed it."""
        if session not in self._admitted:
            return
        # During its step it may be ready, and no longer be when the step is over.
        ready = session.ready
        if ready:
            self._ready.setdefault(session, now)
        else:
            self._ready.pop(session, None)
        if ready and session.urgent:
            self._urgent.add(session)
        elif self._urgent:
            self._urgent.discard(session)
        if self._markers:
            self._markers.pop(session, None)
        if not ready and session.awaits_marker:
            self._markers[session] = now + self.marker_wait

    def delay(self, now: float) -> float | None:
        """Return the seconds until something is due; None when nothing is due until a session changes."""
        due = self._waiting.end
        if self._ready:
            due = min(due, self._step_time())
        if self._markers:
            due = min(due, next(iter(self._markers.values())))
        return None if due == math.inf else max(0.0, due - now)

    def expire(self, now: float) -> list[Session]:
        """Flush for the markers that are due. Returns the sessions whose time to wait for a slot is over."""
        for session, when in list(self._markers.items()):
            if when > now:
                break
            session.flush_for_markers(now)
            self.refresh(session, now)
        return self._waiting.late(now)

    def take(self, now: float) -> list[Session]:
        """Return the sessions of the step that is due, if any. The next call marks the end of that step."""
        if self._step is not None:
            sessions, began = self._step
            self._costs.record(sessions, now - began, now)
            self._step = None
        if not self._ready or self._step_time() > now:
            return []
        batch = self._next(now)
        for session in batch:
            del self._ready[session]
        self._urgent.difference_update(batch)
        self._step = (len(batch), now)
        return batch

    def oldest_wait(self, now: float) -> float:
        """Return how long the oldest frame of the next step has waited, in seconds."""
        batch = self._next(now)
        return now - self._ready[batch[0]] if batch else 0.0

    def _next(self, now: float) -> list[Session]:
        """Return the sessions of the next step, in the order they became ready: all, or only the urgent ones."""
        ready = list(self._ready)
        held = next((session for session in ready if session not in self._urgent), None)
        if held is None or not self._urgent:
            return ready
        alone, together = self._costs.of(len(self._urgent), now), self._costs.of(len(ready), now)
        if 2 * alone >= together or now + alone > self._ready[held] + HOLD_SECONDS:
            return ready
        return [session for session in ready if session in self._urgent]

    def _step_time(self) -> float:
        """Return when the next step is due; at least one session must be ready."""
        oldest = next(iter(self._ready.values()))
        if len(self._ready) == len(self._admitted):
            return oldest
        if self._urgent:
            return oldest if len(self._ready) >= len(self._admitted) // 16 else oldest + URGENT_WAIT_SECONDS
        return oldest + self.batch_wait

    def _admit_waiting(self, now: float) -> list[Session]:
        """Give slots to the sessions that are next."""
        admitted = []
        while (following := self._waiting.next(len(self._free))) is not None:
            self._admit(following[0], now)
            admitted.append(following[0])
        return admitted

    def _admit(self, session: Session, now: float) -> None:
        self._admitted.add(session)
        session.admit(*(heapq.heappop(self._free) for _ in range(session.width)))
        self.refresh(session, now)


class StepCosts:
    """Measured times of steps, by number of sessions, in classes a factor of two wide."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}  # by the class: seconds, and when that was seen

    def record(self, sessions: int, seconds: float, now: float) -> None:
        self._seen[sessions.bit_length()] = (seconds, now)

    def of(self, sessions: int, now: float) -> float:
        """Return the time of a step for this many sessions, or for the nearest smaller number; 0 if not measured."""
        for size in range(sessions.bit_length(), 0, -1):
            seconds, when = self._seen.get(size, (0.0, -math.inf))
            if now - when < COST_KEPT_SECONDS:
                return seconds
        return 0.0
