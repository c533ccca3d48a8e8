"""The open sessions of an engine, which any thread may change under one lock."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from slipstream.engine.port import Mailbox
from slipstream.engine.scheduler import Scheduler
from slipstream.engine.session import Session
from slipstream.errors import AudioError, Overloaded

_T = TypeVar("_T")


class SessionTable:
    """Sessions, their mailboxes and their scheduler; the `EnginePort` of live sessions.

    As a context manager it holds the lock. At the end of the context it wakes the engine's thread if a step is due, and
    calls the listeners of the sessions that have news, without the lock, since a listener may call back.
    """

    def __init__(self, slots: int, max_waiting: int) -> None:
        self.scheduler = Scheduler(slots, max_waiting=max_waiting)
        self.refusal: Callable[[], BaseException] | None = None
        """Makes the error for new sessions, once the engine takes no more."""
        # Reentrant: the garbage collector may abandon a session while its thread holds the lock.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._sleeps_until = 0.0
        self._mailboxes: dict[Session, Mailbox] = {}
        self._with_news: list[Mailbox] = []
        self._abandoned: deque[Session] = deque()

    # ---------------------------------------------------------------------------- called by live sessions, any thread

    def change(self, mailbox: Mailbox, action: Callable[[Session], _T]) -> _T:
        """See `EnginePort.change`."""
        with self:
            mailbox.check_open()
            try:
                result = action(mailbox.session)
            except AudioError as error:
                self.remove(mailbox.session, error)
                raise
            self.update(mailbox.session)
        return result

    def end(self, session: Session, error: BaseException | None) -> None:
        """See `EnginePort.end`."""
        with self:
            self.remove(session, error)

    def abandon(self, session: Session) -> None:
        """See `EnginePort.abandon`."""
        self._abandoned.append(session)
        self.wake()

    def position(self, session: Session) -> int:
        """See `EnginePort.position`."""
        with self._lock:
            return self.scheduler.position(session)

    # ------------------------------------------------------------------------------------------ called by the engine

    def add(self, mailbox: Mailbox, wait: float) -> None:
        """Add a session. Raises `Overloaded` when there is neither a slot nor a place to wait."""
        with self:
            if self.refusal is not None:
                raise self.refusal()
            self._end_abandoned()
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
                self._end_abandoned()
                if stopping(not self._mailboxes):
                    return None
                now = time.monotonic()
                for session in self.scheduler.expire(now):
                    slots = self.scheduler.slots
                    self.remove(session, Overloaded(f"timed out waiting for a free slot ({slots} of {slots} in use)"))
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

    def update(self, session: Session) -> None:
        """Pass on the news of a session, and schedule it."""
        if (mailbox := self._mailboxes.get(session)) is None:
            return
        if mailbox.collect():
            self._with_news.append(mailbox)
        if session.done:
            self.remove(session, None)
        elif mailbox.overfull:
            self.remove(session, Overloaded(f"{len(mailbox.unread)} events are unread: read the session's events"))
        else:
            self.scheduler.refresh(session, time.monotonic())

    def remove(self, session: Session, error: BaseException | None) -> None:
        """End a session and give its slot to the next one in the queue. Does nothing after its end."""
        following = self.scheduler.remove(session, time.monotonic())
        if (mailbox := self._mailboxes.pop(session, None)) is not None:
            mailbox.end(error)
            self._with_news.append(mailbox)
        for session in following:
            self.update(session)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wake_if_due()
            mailboxes, self._with_news = self._with_news, []
        finally:
            self._lock.release()
        for mailbox in mailboxes:
            try:
                mailbox.signal()
            except Exception as failure:  # a listener that fails ends its own session
                self.end(mailbox.session, failure)

    def _wake_if_due(self) -> None:
        now = time.monotonic()
        if now < self._sleeps_until:
            delay = self.scheduler.delay(now)
            if delay is not None and now + delay < self._sleeps_until:
                self._work.notify()

    def _sleep(self, delay: float | None, now: float) -> None:
        self._sleeps_until = math.inf if delay is None else now + delay
        self._work.wait(delay)
        self._sleeps_until = 0.0

    def _end_abandoned(self) -> None:
        while self._abandoned:
            self.remove(self._abandoned.popleft(), None)
