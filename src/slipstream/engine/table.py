"""The open sessions of an engine in this process, and the steps that they need."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from slipstream.engine.port import Mailbox
from slipstream.engine.scheduler import Scheduler
from slipstream.engine.session import Session
from slipstream.engine.sessions import OpenSessions
from slipstream.errors import Overloaded

_T = TypeVar("_T")


class SessionTable(OpenSessions):
    """Sessions, their mailboxes and their scheduler. At the end of its context it also wakes the engine's thread."""

    def __init__(self, slots: int, max_waiting: int) -> None:
        super().__init__()
        self.scheduler = Scheduler(slots, max_waiting=max_waiting)
        self.refusal: Callable[[], BaseException] | None = None
        """Makes the error for new sessions, once the engine takes no more."""
        self._work = threading.Condition(self._lock)
        self._sleeps_until = 0.0
        self._mailboxes: dict[Session, Mailbox] = {}

    def abandon(self, session: Session) -> None:
        """See `OpenSessions.abandon`."""
        super().abandon(session)
        self.wake()

    def position(self, session: Session) -> int:
        """See `OpenSessions.position`."""
        with self._lock:
            return self.scheduler.position(session)

    # ------------------------------------------------------------------------------------------ called by the engine

    def add(self, mailbox: Mailbox, wait: float) -> None:
        """Add a session. Raises `Overloaded` when there is neither a slot nor a place to wait."""
        with self:
            if self.refusal is not None:
                raise self.refusal()
            self.end_abandoned()
            self.scheduler.add(mailbox.session, time.monotonic(), wait)
            self._mailboxes[mailbox.session] = mailbox
            self.update(mailbox.session)

    def wake(self) -> None:
        """Wake the engine's thread."""
        with self._lock:
            self._work.notify()

    def finish_all(self) -> list[Mailbox]:
        """Finish all sessions. Returns their mailboxes."""
        with self:
            mailboxes = list(self._mailboxes.values())
            for mailbox in mailboxes:
                mailbox.session.finish(time.monotonic())
                self.update(mailbox.session)
        return mailboxes

    def end_all(self, new_error: Callable[[], BaseException]) -> None:
        """End every session, each with its own error: a raised error keeps the stack of its reader."""
        with self:
            self.refusal = new_error
            for session in list(self._mailboxes):
                self.remove(session, new_error())

    def next_step(
        self, stopping: Callable[[bool], bool], fill: Callable[[list[Session], float], _T], *, wait: bool = True
    ) -> _T | None:
        """Return the step that is due, or sleep until one is; called in the engine's thread.

        Args:
            stopping: Called with whether no session is open; returns whether to stop.
            fill: Called under the lock with the sessions of the step, and the seconds the oldest frame has waited.
            wait: Sleep until a step is due.

        Returns:
            What `fill` returned, or None to stop; without `wait` also if no step is due.
        """
        while True:
            with self:
                self.end_abandoned()
                if stopping(not self._mailboxes):
                    return None
                now = time.monotonic()
                for session in self.scheduler.expire(now):
                    shortage = self.scheduler.shortage(session)
                    self.remove(session, Overloaded(f"timed out waiting for a free slot: {shortage}"))
                lag = self.scheduler.oldest_wait(now)
                if sessions := self.scheduler.take(now):
                    filled = fill(sessions, lag)
                    for session in sessions:
                        if session.ready:  # with the frame after, although the output of this one is still to come
                            self.scheduler.refresh(session, now)
                    return filled
                if not wait:
                    return None
                if not self._with_news:
                    self._sleep(self.scheduler.delay(now), now)

    @property
    def idle(self) -> bool:
        """Whether the engine's thread sleeps until something changes."""
        return self._sleeps_until == math.inf

    # ---------------------------------------------------------------------------------------------- only within `with`

    def remove(self, session: Session, error: BaseException | None) -> None:
        """End a session and give its slot to the next one in the queue. Does nothing after its end."""
        following = self.scheduler.remove(session, time.monotonic())
        if (mailbox := self._mailboxes.pop(session, None)) is not None:
            self._deliver(mailbox, error)
        for session in following:
            self.update(session)

    def _mailbox_of(self, session: Session) -> Mailbox | None:
        return self._mailboxes.get(session)

    def _schedule(self, session: Session) -> None:
        self.scheduler.refresh(session, time.monotonic())

    def __exit__(self, *raised: object) -> None:
        try:
            self._wake_if_due()
        finally:
            super().__exit__(*raised)

    def _wake_if_due(self) -> None:
        if self._sleeps_until and (now := time.monotonic()) < self._sleeps_until:
            delay = self.scheduler.delay(now)
            if delay is not None and now + delay < self._sleeps_until:
                self._sleeps_until = 0.0  # one call is enough, however long the thread takes to wake
                self._work.notify()

    def _sleep(self, delay: float | None, now: float) -> None:
        self._sleeps_until = math.inf if delay is None else now + delay
        self._work.wait(delay)
        self._sleeps_until = 0.0
