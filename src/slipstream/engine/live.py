"""The two sides of a session: its owner's, thread-safe, and the engine's."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.engine.session import Session
from slipstream.errors import AudioError, Overloaded, SessionClosed
from slipstream.events import Event, PartialWord, Step

if TYPE_CHECKING:
    from slipstream.engine.engine import Engine

MAX_UNREAD_EVENTS = 20_000
"""Events a session keeps for a reader that does not come: more than an hour of words. From half of it on, partial words
and steps are left out; beyond it the session ends with `Overloaded`."""


class LiveSession:
    """One stream on an engine: audio in from any thread, events out to any other.

    Iterate over it for its events, up to `Final`. As a context manager it frees its slot in the end, whatever happens;
    so does forgetting it.
    """

    def __init__(self, engine: Engine, port: Port) -> None:
        self._engine = engine
        self._port = port
        # The finalizer lives as long as this does: it may hold nothing that may hold this, as the port's listener does.
        weakref.finalize(self, engine._give_up, port.session).atexit = False

    @property
    def clock(self) -> float:
        """Seconds of its audio heard so far."""
        return self._port.session.clock

    @property
    def ended(self) -> bool:
        """Whether no more events come; those that came may still wait to be read."""
        return self._port.ended

    @property
    def queue_position(self) -> int:
        """How many sessions get a slot before this one, itself counted; 0 once it has one."""
        with self._engine._lock:
            return self._engine._scheduler.position(self._port.session)

    def offer(self, samples: npt.ArrayLike) -> int:
        """Send as much of the audio as there is room for; returns how many samples that was.

        `samples`: as of `send`. When some are left, the session's `wake` is called once there is room again. Raises
        `SessionClosed` after `finish` or the end. What is not audio raises `AudioError`, and ends the session with it.
        """
        audio_S = self.convert(samples)
        port, session = self._port, self._port.session
        with self._engine._changing:
            port.check_open()
            taken = min(len(audio_S), session.room)
            try:
                session.push(audio_S[:taken])
            except AudioError as error:
                self._engine._end(session, error)
                raise
            port.wanted_room = min(len(audio_S) - taken, session.capacity // 2)
            self._engine._changed(port)
        return taken

    def convert(self, samples: npt.ArrayLike) -> FloatArray:
        """Convert one chunk, as of `send`, to float32 `[S]`, once for all of the `offer` calls it takes.

        What is not audio raises `AudioError`, and ends the session with it: its reader must not wait for the rest.
        """
        try:
            return self._port.session.convert(samples)
        except AudioError as error:
            self.fail(error)
            raise

    def send(self, samples: npt.ArrayLike, timeout: float | None = None) -> None:
        """Send audio, waiting for room for up to `timeout` seconds (None: as long as it takes; 0: not at all).

        Args:
            samples: mono `[S]` at the model's rate: floats within [-1, 1], int8, int16, int32 or uint8.
            timeout: in seconds.

        Raises:
            SessionClosed: after `finish` or the end.
            AudioError: for what is not audio; the session ends with it, so that its reader gets the error, too.
            Overloaded: when the time is up. The rest of the audio was not taken.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        audio_S = self.convert(samples)
        while (taken := self.offer(audio_S)) < len(audio_S):
            audio_S = audio_S[taken:]
            if not self._port.wait(lambda port: port.wanted_room == 0 or port.ended, deadline):
                raise Overloaded(
                    f"{self._port.session.options.max_buffered_seconds:g} s of audio wait to be transcribed: "
                    "it arrives faster than the model can process it"
                )

    def feed(self, chunks: Iterable[npt.ArrayLike]) -> None:
        """Send all chunks, then `finish`: the whole work of a thread that sends while another one reads.

        An error on the way, of `chunks` too, ends the session with it, so that the reader gets it instead of waiting.
        """
        try:
            for chunk in chunks:
                self.send(chunk)
            self.finish()
        except Exception as error:
            self.fail(error)
            raise
        except BaseException:  # cancelled or interrupted
            self.cancel()
            raise

    def fail(self, error: BaseException) -> None:
        """End at once and free the slot, like `cancel`; the reader gets `error`. Harmless after the end."""
        with self._engine._changing:
            self._engine._end(self._port.session, error)

    def flush(self) -> None:
        """Ask for all text of the audio sent so far at once; `Flushed` tells that it is out. The stream goes on."""
        self._ask(lambda session: session.flush(time.monotonic()))

    def mark(self, id: int) -> None:
        """Ask to be told, by `MarkerReached`, when all text of the audio sent so far is out."""
        self._ask(lambda session: session.mark(id, time.monotonic()))

    def finish(self) -> None:
        """Say that no more audio comes: what was sent is heard and flushed, then `Final` is told."""
        self._ask(lambda session: session.finish(time.monotonic()))

    def restart(self) -> None:
        """Forget everything, audio not yet heard included, and begin afresh in the same slot; `Ready` tells it."""
        self._ask(lambda session: session.restart())

    def cancel(self) -> None:
        """End at once, heard or not, and free the slot. Harmless after the end."""
        with self._engine._changing:
            self._engine._end(self._port.session, None)

    def take(self) -> list[Event]:
        """The events that came since the last call, without waiting.

        When the session has failed, its error is raised once the events before it are taken.
        """
        return self._port.take()

    def __iter__(self) -> Iterator[Event]:
        while self._port.wait(lambda port: port.unread or port.ended):
            events = self.take()
            if not events:
                return
            yield from events

    def __enter__(self) -> LiveSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _ask(self, wish: Callable[[Session], None]) -> None:
        with self._engine._changing:
            self._port.check_open()
            wish(self._port.session)
            self._engine._changed(self._port)


class Port:
    """Where a session's two sides meet: what its owner has not read yet, and whether it has ended."""

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
        """Whether its reader does not come."""
        return len(self.unread) > MAX_UNREAD_EVENTS

    def collect(self) -> bool:
        """Take over the session's events; returns whether its owner has something to do."""
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
        """Tell the owner that there is something to do."""
        if self._waiters:
            with self._news:
                self._news.notify_all()
        if self._wake is not None:
            self._wake()

    def wait(self, done: Callable[[Port], object], deadline: float = math.inf) -> bool:
        """Wait for `done` to become true; returns whether it did before `deadline`."""
        with self._news:
            # Counted before `done` is looked at: whoever changes something after that look sees that there is a waiter.
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
