"""A mailbox for the events of a session: what its engine writes and its owner reads."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from slipstream.engine.session import Session
from slipstream.errors import SessionClosed
from slipstream.events import Event, PartialWord, Step

MAX_UNREAD_EVENTS = 20_000
"""Events kept for a reader that falls behind: more than an hour of words. From half of it on, partial words and steps
are dropped; beyond it the session ends with `Overloaded`."""


class Mailbox:
    """Events of one session that its owner has not read yet, and whether the session has ended."""

    def __init__(self, session: Session, wake: Callable[[], None] | None) -> None:
        self.session = session
        self.unread: deque[Event] = deque()
        self.ended = False
        self.wanted_room = 0
        self._wake = wake
        self._error: BaseException | None = None
        self._news = threading.Condition()
        self._waiters = 0

    @property
    def overfull(self) -> bool:
        """Whether too many events are unread."""
        return len(self.unread) > MAX_UNREAD_EVENTS

    def collect(self) -> bool:
        """Take over the session's events. Returns whether its owner has something to do."""
        news = False
        if self.session.events:
            events, self.session.events = self.session.events, []
            if len(self.unread) > MAX_UNREAD_EVENTS // 2:
                events = [event for event in events if not isinstance(event, (PartialWord, Step))]
            self.unread.extend(events)
            news = bool(events)
        if self.wanted_room and self.wanted_room <= self.session.room:
            self.wanted_room = 0
            news = True
        return news

    def end(self, error: BaseException | None) -> None:
        self.collect()
        self._error = error
        self.ended = True

    def signal(self) -> None:
        """Wake the owner."""
        if self._waiters:
            with self._news:
                self._news.notify_all()
        if self._wake is not None:
            self._wake()

    def wait(self, done: Callable[[Mailbox], object], deadline: float = math.inf) -> bool:
        """Wait for `done` to become true. Returns whether it did before `deadline`."""
        with self._news:
            # Counted before `done` is evaluated: a later change then finds a waiter to notify.
            self._waiters += 1
            try:
                timeout = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
                return bool(self._news.wait_for(lambda: done(self), timeout))
            finally:
                self._waiters -= 1

    def take(self) -> list[Event]:
        ended = self.ended
        events = [self.unread.popleft() for _ in range(len(self.unread))]
        if not events and ended and self._error is not None:
            raise self._error
        return events

    def check_open(self) -> None:
        if self.ended:
            raise self._error or SessionClosed("the session has ended")
