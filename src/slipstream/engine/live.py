"""A live session: audio in from any thread, events out to any other."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.engine.options import SessionOptions, StreamFormat
from slipstream.engine.port import Mailbox
from slipstream.engine.session import Session
from slipstream.engine.sessions import OpenSessions
from slipstream.engine.turns import TurnOptions
from slipstream.errors import AudioError, ConfigError, Overloaded
from slipstream.events import Event
from slipstream.hints import Hints


class AnyEngine(Protocol):
    """What a server needs of an engine, in this process (`Engine`) or in another one (`RemoteEngine`)."""

    @property
    def format(self) -> StreamFormat:
        """What all its sessions have in common."""
        ...

    @property
    def slots(self) -> int:
        """Sessions that can have a slot at the same time."""
        ...

    @property
    def active(self) -> int:
        """Slots in use."""
        ...

    @property
    def waiting(self) -> int:
        """Sessions that wait for a slot."""
        ...

    @property
    def alive(self) -> bool:
        """Whether the engine runs."""
        ...

    @property
    def step_seconds(self) -> float:
        """How long the step in progress has taken so far; 0 between steps."""
        ...

    @property
    def failure(self) -> BaseException | None:
        """The exception that has stopped the engine."""
        ...

    def open(
        self,
        options: SessionOptions | None = None,
        *,
        wait: float = 0.0,
        wake: Callable[[], None] | None = None,
    ) -> LiveSession:
        """Open a session, as `Engine.open` does."""
        ...

    def width_for(self, sessions: int) -> int:
        """Return how many slots each of this number of sessions can have at the same time; 0 if they do not fit."""
        ...


def check_width(width: int, slots: int) -> None:
    """Raise `ConfigError` for a session that needs more slots than a model has on one device."""
    if width > slots:
        raise ConfigError(f"a beam of {width} needs {width} slots of one device: expected 1 to {slots}")


class LiveSession:
    """One stream on an engine. Send audio in one thread and read events in another.

    Iterate over it for its events, up to `Final`. It frees its slot at the end of its context, or when it is no longer
    referenced.
    """

    def __init__(self, engine: OpenSessions, mailbox: Mailbox) -> None:
        self._engine = engine
        self._mailbox = mailbox
        # The finalizer must hold nothing that may hold this session, as the mailbox's listener does.
        weakref.finalize(self, engine.abandon, mailbox.session).atexit = False

    @property
    def clock(self) -> float:
        """Seconds of its audio processed so far."""
        return self._mailbox.session.clock

    @property
    def ended(self) -> bool:
        """Whether no more events follow those that wait to be read."""
        return self._mailbox.ended

    @property
    def queue_position(self) -> int:
        """Place in the queue for a slot, from 1; 0 once it has one."""
        return self._engine.position(self._mailbox.session)

    def offer(self, samples: npt.ArrayLike) -> int:
        """Send as much of the audio as there is room for, without waiting.

        When samples are left, the session's `wake` is called once there is room for them.

        Args:
            samples: As in `send`.

        Returns:
            The number of samples taken.

        Raises:
            SessionClosed: After `finish` or the end.
            AudioError: The samples are invalid; the session ends with this error.
        """
        audio_S = self.convert(samples)

        def push(session: Session) -> int:
            taken = min(len(audio_S), session.room)
            session.push(audio_S[:taken])
            self._mailbox.wanted_room = min(len(audio_S) - taken, session.capacity // 2)
            return taken

        return self._engine.change(self._mailbox, push)

    def convert(self, samples: npt.ArrayLike) -> FloatArray:
        """Convert one chunk to float32 `[S]`, once for all `offer` calls that it takes.

        Raises `AudioError` for invalid samples; the session ends with it, so that its reader gets the error too.
        """
        try:
            return self._mailbox.session.convert(samples)
        except AudioError as error:
            self.fail(error)
            raise

    def send(self, samples: npt.ArrayLike, timeout: float | None = None) -> None:
        """Send audio, and wait while there is no room for it.

        Args:
            samples: Mono audio `[S]` at the model's rate: floats within [-1, 1], int8, int16, int32 or uint8.
            timeout: How long to wait, in seconds; None waits without a limit, 0 does not wait.

        Raises:
            SessionClosed: After `finish` or the end.
            AudioError: The samples are invalid; the session ends with it, so that its reader gets the error too.
            Overloaded: The time is up. The rest of the audio was not taken.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        audio_S = self.convert(samples)
        while (taken := self.offer(audio_S)) < len(audio_S):
            audio_S = audio_S[taken:]
            if not self._mailbox.wait(lambda mailbox: mailbox.wanted_room == 0 or mailbox.ended, deadline):
                raise Overloaded(
                    f"{self._mailbox.session.options.max_buffered_seconds:g} s of audio wait to be transcribed: "
                    "it arrives faster than the model can process it"
                )

    def feed(self, chunks: Iterable[npt.ArrayLike]) -> None:
        """Send all chunks, then `finish`: all that a sending thread needs to do.

        An error, also one of `chunks`, ends the session with it, so that the reader gets it instead of waiting.
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
        """End immediately and free the slot, like `cancel`; the reader gets `error`. Does nothing after the end."""
        self._engine.end(self._mailbox.session, error)

    def flush(self, *, buffered: bool = True) -> None:
        """Emit all text of the audio sent so far without waiting for more; `Flushed` follows. The stream continues.

        Args:
            buffered: Whether the audio that still waits for the model comes before the flush. Otherwise the flush
                covers only what the model has processed; it may then be called until the end, also after `finish`.
        """
        self._engine.change(self._mailbox, lambda session: session.flush(time.monotonic(), buffered=buffered))

    def mark(self, id: int) -> None:
        """Emit `MarkerReached` with `id` once all text of the audio sent so far is out."""
        self._engine.change(self._mailbox, lambda session: session.mark(id, time.monotonic()))

    def set_turns(self, turns: TurnOptions, low_latency: bool = False) -> None:
        """Change when turns end and whether each end flushes, from the next frame that is processed."""
        self._engine.change(self._mailbox, lambda session: session.set_turns(turns, low_latency))

    def set_hints(self, hints: Hints) -> None:
        """Change the keywords, from the next frame that is processed. The other hints hold from the start."""
        self._engine.change(self._mailbox, lambda session: session.set_hints(hints))

    def finish(self) -> None:
        """End the audio: what was sent is transcribed to its end, then `Final` follows."""
        self._engine.change(self._mailbox, lambda session: session.finish(time.monotonic()))

    def restart(self) -> None:
        """Reset the session in its slot and drop its buffered audio; `Ready` follows."""
        self._engine.change(self._mailbox, lambda session: session.restart())

    def cancel(self) -> None:
        """End immediately, drop unprocessed audio and free the slot. Does nothing after the end."""
        self._engine.end(self._mailbox.session, None)

    def take(self) -> list[Event]:
        """Return the events since the last call, without waiting.

        Raises the error of a failed session, once all events before it are taken.
        """
        return self._mailbox.take()

    def __iter__(self) -> Iterator[Event]:
        while self._mailbox.wait(lambda mailbox: mailbox.unread or mailbox.ended):
            events = self.take()
            if not events:
                return
            yield from events

    def __enter__(self) -> LiveSession:
        return self

    def __exit__(self, *raised: object) -> None:
        self.cancel()
