"""A live session: audio in from any thread, events out to any other."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Iterable, Iterator
from types import TracebackType

import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.engine.port import EnginePort, Mailbox
from slipstream.engine.session import Session
from slipstream.errors import AudioError, Overloaded
from slipstream.events import Event


class LiveSession:
    """One stream on an engine: audio in from any thread, events out to any other.

    Iterate over it for its events, up to `Final`. As a context manager it frees its slot in the end, whatever happens;
    so does forgetting it.
    """

    def __init__(self, engine: EnginePort, mailbox: Mailbox) -> None:
        self._engine = engine
        self._mailbox = mailbox
        # The finalizer must hold nothing that may hold this session, as the mailbox's listener does.
        weakref.finalize(self, engine.abandon, mailbox.session).atexit = False

    @property
    def clock(self) -> float:
        """Seconds of its audio heard so far."""
        return self._mailbox.session.clock

    @property
    def ended(self) -> bool:
        """Whether no more events come; those that came may still wait to be read."""
        return self._mailbox.ended

    @property
    def queue_position(self) -> int:
        """How many sessions get a slot before this one, itself counted; 0 once it has one."""
        return self._engine.position(self._mailbox.session)

    def offer(self, samples: npt.ArrayLike) -> int:
        """Send as much of the audio as there is room for; returns how many samples that was.

        `samples`: as of `send`. When some are left, the session's `wake` is called once there is room again. Raises
        `SessionClosed` after `finish` or the end. What is not audio raises `AudioError`, and ends the session with it.
        """
        audio_S = self.convert(samples)

        def push(session: Session) -> int:
            taken = min(len(audio_S), session.room)
            session.push(audio_S[:taken])
            self._mailbox.wanted_room = min(len(audio_S) - taken, session.capacity // 2)
            return taken

        return self._engine.change(self._mailbox, push)

    def convert(self, samples: npt.ArrayLike) -> FloatArray:
        """Convert one chunk, as of `send`, to float32 `[S]`, once for all of the `offer` calls it takes.

        What is not audio raises `AudioError`, and ends the session with it: its reader must not wait for the rest.
        """
        try:
            return self._mailbox.session.convert(samples)
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
            if not self._mailbox.wait(lambda mailbox: mailbox.wanted_room == 0 or mailbox.ended, deadline):
                raise Overloaded(
                    f"{self._mailbox.session.options.max_buffered_seconds:g} s of audio wait to be transcribed: "
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
        self._engine.end(self._mailbox.session, error)

    def flush(self) -> None:
        """Ask for all text of the audio sent so far at once; `Flushed` tells that it is out. The stream goes on."""
        self._engine.change(self._mailbox, lambda session: session.flush(time.monotonic()))

    def mark(self, id: int) -> None:
        """Ask to be told, by `MarkerReached`, when all text of the audio sent so far is out."""
        self._engine.change(self._mailbox, lambda session: session.mark(id, time.monotonic()))

    def finish(self) -> None:
        """Say that no more audio comes: what was sent is heard and flushed, then `Final` is told."""
        self._engine.change(self._mailbox, lambda session: session.finish(time.monotonic()))

    def restart(self) -> None:
        """Forget everything, audio not yet heard included, and begin afresh in the same slot; `Ready` tells it."""
        self._engine.change(self._mailbox, lambda session: session.restart())

    def cancel(self) -> None:
        """End at once, heard or not, and free the slot. Harmless after the end."""
        self._engine.end(self._mailbox.session, None)

    def take(self) -> list[Event]:
        """The events that came since the last call, without waiting.

        When the session has failed, its error is raised once the events before it are taken.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
