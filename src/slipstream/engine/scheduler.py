"""Which session has which slot, and when the next step runs. No thread, no device: it is told the time."""

from __future__ import annotations

import heapq
import math

from slipstream.engine.session import Session
from slipstream.errors import Overloaded

BATCH_WAIT_SECONDS = 0.01
"""How long a frame may wait for those of other sessions. A step costs about the same for one slot as for many, so one
full step beats two half-empty ones; an eighth of a frame's own time bounds what that may cost in latency."""

URGENT_WAIT_SECONDS = 0.004
"""How long an urgent frame waits for a sixteenth of the sessions. When hundreds have fallen behind, steps for a few of
them each would take the time that they need to catch up."""

MARKER_WAIT_SECONDS = 0.2
"""How long a marker waits for more audio before its text is flushed. Two and a half frames: a live client that goes on
speaking is not flushed in the middle of a word."""


HOLD_SECONDS = 0.06
"""How long a frame may wait while urgent sessions take steps of their own before it. Three quarters of a frame's own
time: its step begins before the session's next frame comes, so nobody falls behind for another's flush."""

COST_KEPT_SECONDS = 10.0
"""How long what a step cost is believed: one slow step must not rule out steps of its size for good."""


class Scheduler:
    """Admits sessions to slots and decides each step. All times are `now` of one steady clock, in seconds.

    A step runs as soon as every admitted session has a frame, or one is urgent (it is behind its audio, or on its way
    to and through a flush; among many it waits a little for company), or one frame has waited for `batch_wait`; it
    takes every session that has a frame. But where steps for a few are seen to cost less than half of a step for all,
    the urgent ones run ahead, as long as no other frame has waited for `HOLD_SECONDS`. The lowest free slot is given
    first, so that a runner can leave the rest of its batch out.
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
        self._waiting: dict[Session, float] = {}  # in the order of coming: until when each waits
        self._ready: dict[Session, float] = {}  # in the order of becoming ready: since when
        self._urgent: set[Session] = set()
        self._markers: dict[Session, float] = {}  # in the order of time: when each session's markers are flushed for
        self._costs = _StepCosts()
        self._step: tuple[int, float] | None = None  # the sessions of the step under way, and when it began

    @property
    def active(self) -> int:
        """Sessions that have a slot."""
        return len(self._admitted)

    @property
    def waiting(self) -> int:
        """Sessions that wait for a slot."""
        return len(self._waiting)

    def position(self, session: Session) -> int:
        """How many sessions get a slot before this one, itself counted; 0 for one that does not wait."""
        return list(self._waiting).index(session) + 1 if session in self._waiting else 0

    def add(self, session: Session, now: float, wait: float = 0.0) -> None:
        """Give the session a slot, or a place in the queue for up to `wait` seconds.

        Raises `Overloaded` when every slot is taken and it may not wait, or too many wait already.
        """
        if self._free:
            self._admit(session, now)
        elif wait <= 0:
            raise Overloaded(f"all {self.slots} slots are taken")
        elif len(self._waiting) >= self.max_waiting:
            raise Overloaded(f"all {self.slots} slots are taken and {len(self._waiting)} sessions wait already")
        else:
            self._waiting[session] = now + wait

    def remove(self, session: Session, now: float) -> Session | None:
        """Take the session's slot or its place in the queue; gives the session that has got the slot, if one waited."""
        if self._waiting.pop(session, None) is not None or session not in self._admitted:
            session.release()
            return None
        self._admitted.discard(session)
        self._ready.pop(session, None)
        self._urgent.discard(session)
        self._markers.pop(session, None)
        if session.slot is not None:
            heapq.heappush(self._free, session.slot)
        session.release()
        if not self._waiting:
            return None
        following = next(iter(self._waiting))
        del self._waiting[following]
        self._admit(following, now)
        return following

    def refresh(self, session: Session, now: float) -> None:
        """Look at a session again, after audio, a wish or a step has changed it."""
        if session not in self._admitted:
            return
        # While its step runs it may look ready, and turn out not to be when the step is over.
        if session.ready:
            self._ready.setdefault(session, now)
        else:
            self._ready.pop(session, None)
        if session.ready and session.urgent:
            self._urgent.add(session)
        else:
            self._urgent.discard(session)
        self._markers.pop(session, None)
        if session.awaits_marker and not session.ready:
            self._markers[session] = now + self.marker_wait

    def delay(self, now: float) -> float | None:
        """Seconds until something is due: 0 for now, None when nothing is until a session changes."""
        due = min(self._waiting.values(), default=math.inf)
        if self._ready:
            due = min(due, self._step_time())
        if self._markers:
            due = min(due, next(iter(self._markers.values())))
        return None if due == math.inf else max(0.0, due - now)

    def expire(self, now: float) -> list[Session]:
        """Flush for the markers whose time has come; gives the sessions that have waited for a slot long enough."""
        for session, when in list(self._markers.items()):
            if when > now:
                break
            session.flush_for_markers(now)
            self.refresh(session, now)
        return [session for session, until in self._waiting.items() if until <= now]

    def take(self, now: float) -> list[Session]:
        """The sessions of the step that is due; none when no step is. The next call tells that this step is over."""
        if self._step is not None:
            sessions, began = self._step
            self._costs.record(sessions, now - began, now)
            self._step = None
        if not self._ready or self._step_time() > now:
            return []
        batch = self._next(now)
        for session in batch:
            del self._ready[session]
            self._urgent.discard(session)
        self._step = (len(batch), now)
        return batch

    def oldest_wait(self, now: float) -> float:
        """Seconds for which the oldest frame of the next step has waited."""
        batch = self._next(now)
        return now - self._ready[batch[0]] if batch else 0.0

    def _next(self, now: float) -> list[Session]:
        """Whom the next step takes, in the order of becoming ready: all, or the urgent ones ahead of the others."""
        ready = list(self._ready)
        held = next((session for session in ready if session not in self._urgent), None)
        if held is None or not self._urgent:
            return ready
        alone, together = self._costs.of(len(self._urgent), now), self._costs.of(len(ready), now)
        if 2 * alone >= together or now + alone > self._ready[held] + HOLD_SECONDS:
            return ready
        return [session for session in ready if session in self._urgent]

    def _step_time(self) -> float:
        """When the next step is due, given that a session is ready."""
        oldest = next(iter(self._ready.values()))
        if len(self._ready) == len(self._admitted):
            return oldest
        if self._urgent:
            return oldest if len(self._ready) >= len(self._admitted) // 16 else oldest + URGENT_WAIT_SECONDS
        return oldest + self.batch_wait

    def _admit(self, session: Session, now: float) -> None:
        self._admitted.add(session)
        session.admit(heapq.heappop(self._free))
        self.refresh(session, now)


class _StepCosts:
    """What steps were seen to cost, by number of sessions, in classes a factor of two wide."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}  # by the class: seconds, and when that was seen

    def record(self, sessions: int, seconds: float, now: float) -> None:
        self._seen[sessions.bit_length()] = (seconds, now)

    def of(self, sessions: int, now: float) -> float:
        """Seconds for a step of so many, or of the nearest smaller number lately seen; 0 where none: worth a try."""
        for size in range(sessions.bit_length(), 0, -1):
            seconds, when = self._seen.get(size, (0.0, -math.inf))
            if now - when < COST_KEPT_SECONDS:
                return seconds
        return 0.0
