"""The open sessions of an engine, which any thread may change under one lock."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from slipstream.engine.port import Mailbox
from slipstream.engine.session import Session
from slipstream.errors import AudioError, Overloaded

_T = TypeVar("_T")


class OpenSessions(ABC):
    """The sessions of one engine: what a `LiveSession` calls, from any thread.

    As a context manager it holds the lock. At the end of the context it calls the listeners of the sessions that have
    news, without the lock, since a listener may call back.
    """

    def __init__(self) -> None:
        # Reentrant: the garbage collector may abandon a session while its thread holds the lock.
        self._lock = threading.RLock()
        self._with_news: list[Mailbox] = []
        self._abandoned: deque[Session] = deque()

    def change(self, mailbox: Mailbox, action: Callable[[Session], _T]) -> _T:
        """Run `action` on the mailbox's session, alone, and schedule the session again.

        Raises the session's error, or `SessionClosed`, after its end. An `AudioError` of `action` ends the session.
        """
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
        """End a session and free its slot; its reader gets `error`. Does nothing after the end."""
        with self:
            self.remove(session, error)

    def abandon(self, session: Session) -> None:
        """End a session whose owner no longer exists. Safe in the garbage collector, in any thread."""
        self._abandoned.append(session)

    @abstractmethod
    def position(self, session: Session) -> int:
        """Return the place of a session in the queue for a slot; 0 once it has one."""

    # ---------------------------------------------------------------------------------------------- only within `with`

    @abstractmethod
    def remove(self, session: Session, error: BaseException | None) -> None:
        """End a session and free its slot. Does nothing after its end."""

    @abstractmethod
    def _mailbox_of(self, session: Session) -> Mailbox | None:
        """Return the mailbox of a session, or None after its end."""

    @abstractmethod
    def _schedule(self, session: Session) -> None:
        """Have the model process what an open session has."""

    def update(self, session: Session) -> None:
        """Pass on the news of a session, and schedule it."""
        if (mailbox := self._mailbox_of(session)) is None:
            return
        if mailbox.collect():
            self._with_news.append(mailbox)
        if session.done:
            self.remove(session, None)
        elif mailbox.overfull:
            self.remove(session, Overloaded(f"{len(mailbox.unread)} events are unread: read the session's events"))
        else:
            self._schedule(session)

    def end_abandoned(self) -> None:
        """End the sessions whose owners no longer exist."""
        while self._abandoned:
            self.remove(self._abandoned.popleft(), None)

    def _deliver(self, mailbox: Mailbox, error: BaseException | None) -> None:
        """Pass on the end of a session."""
        mailbox.end(error)
        self._with_news.append(mailbox)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        mailboxes, self._with_news = self._with_news, []
        self._lock.release()
        for mailbox in mailboxes:
            try:
                mailbox.signal()
            except Exception as failure:  # a listener that fails ends its own session
                self.end(mailbox.session, failure)
