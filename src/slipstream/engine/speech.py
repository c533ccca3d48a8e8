"""The engine of text to speech: one thread that runs the model for many sessions."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from slipstream.arrays import IntArray
from slipstream.engine.reading import Reading, SpeechEvent, SpeechOptions
from slipstream.errors import EngineError, Overloaded, SessionClosed
from slipstream.model.numerics import UNGENERATED
from slipstream.model.runner import State
from slipstream.model.speech import SpeechRunner, Voice
from slipstream.model.text import Tokenizer

MAX_AHEAD = 250
"""Events that a session may have and its owner has not read: more text is read when they are taken."""


@dataclass(frozen=True)
class SpeechSnapshot:
    """A copy of a session, which can continue in any slot of an engine of the same model."""

    reading: Reading
    state: State | None


@dataclass
class _Entry:
    """A session in the engine's table; everything is guarded by the engine's lock."""

    reading: Reading
    wake: Callable[[], None] | None
    restored: State | None = None
    events: deque[SpeechEvent] = field(default_factory=deque)
    slot: int | None = None
    error: BaseException | None = None
    done: bool = False
    wanted: list[_Wanted] = field(default_factory=list)


@dataclass
class _Wanted:
    """A snapshot that a thread waits for."""

    snapshot: SpeechSnapshot | None = None


class SpeechSession:
    """A text that is read aloud. Its methods can be called in any thread.

    Example:
        >>> with speaker.open(voice="ann") as session:
        ...     session.feed("Good morning. ")
        ...     session.end()
        ...     for event in session:
        ...         play(event)
    """

    def __init__(self, engine: SpeechEngine, entry: _Entry) -> None:
        self._engine, self._entry = engine, entry

    def feed(self, text: str) -> None:
        """Add text. The speech begins with the first words: a word is complete with the white space after it.

        Args:
            text: Any piece of the text.

        Raises:
            SessionClosed: The session has ended.
        """
        self._engine.change(self._entry, lambda reading: reading.feed(text))

    def flush(self) -> None:
        """Speak the text so far to its end, without waiting for more words, which may follow later.

        A model that reads some words ahead then does without them, so that the speech may differ.

        Raises:
            SessionClosed: The session has ended.
        """
        self._engine.change(self._entry, Reading.flush)

    def end(self) -> None:
        """There is no more text: the speech is read to its end."""
        self._engine.change(self._entry, Reading.end)

    def turn(self) -> None:
        """The other speaker continues, with a session of two voices."""
        self._engine.change(self._entry, Reading.turn)

    def cancel(self) -> None:
        """Stop within one step. Events that were not read are dropped, and the slot is free."""
        self._engine.remove(self._entry)

    def snapshot(self) -> SpeechSnapshot:
        """Copy the session between two steps. Events that were not read are not a part of it.

        Raises:
            SessionClosed: The session has ended.
        """
        return self._engine.snapshot(self._entry)

    def poll(self) -> list[SpeechEvent]:
        """Return the events so far, without waiting. Raises what ended the session, after its last event."""
        return self._engine.take(self._entry)

    @property
    def ended(self) -> bool:
        """Whether the session gives no more events. Raises what ended it, if that was an error."""
        return self._engine.ended(self._entry)

    def __iter__(self) -> Iterator[SpeechEvent]:
        while event := self._engine.wait(self._entry):
            yield event

    def __enter__(self) -> SpeechSession:
        return self

    def __exit__(self, *raised: object) -> None:
        self.cancel()


class SpeechEngine:
    """Runs many sessions on one model, which only its own thread touches. A failed step ends every session.

    Args:
        runner: The model.
        tokenizer: Its tokenizer.
        max_waiting: Sessions that may wait for a slot.
    """

    def __init__(self, runner: SpeechRunner, tokenizer: Tokenizer, *, max_waiting: int = 64) -> None:
        self.runner, self.tokenizer = runner, tokenizer
        self._max_waiting = max_waiting
        self._condition = threading.Condition()
        self._slots: list[_Entry | None] = [None] * runner.slots
        self._waiting: deque[_Entry] = deque()
        self._closed = False
        self.failure: BaseException | None = None
        """The exception of a step that has stopped the engine."""
        self._thread = threading.Thread(target=self._run, name="slipstream-speech", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """Sessions that have a slot."""
        return sum(entry is not None for entry in self._slots)

    @property
    def alive(self) -> bool:
        """Whether the engine runs: it has neither failed nor been closed."""
        return self._thread.is_alive()

    def open(
        self,
        voice: Voice | None = None,
        options: SpeechOptions | None = None,
        *,
        snapshot: SpeechSnapshot | None = None,
        wake: Callable[[], None] | None = None,
    ) -> SpeechSession:
        """Open a session. It waits for a slot if all are in use.

        Args:
            voice: The voice; None for what the model does without one.
            options: How the text is read.
            snapshot: A copy of a session to continue, instead of a voice and options.
            wake: Called in the engine's thread when there are new events. It must be fast.

        Raises:
            Overloaded: Too many sessions wait.
            SessionClosed: The engine is closed.
            EngineError: The engine has failed.
        """
        reading = (
            snapshot.reading.copy()
            if snapshot
            else Reading(self.runner, self.tokenizer, voice, options or SpeechOptions())
        )
        entry = _Entry(reading, wake, restored=snapshot.state if snapshot else None)
        with self._condition:
            self._check_open()
            slots = len(self._slots)
            if self.active + len(self._waiting) >= slots + self._max_waiting:
                raise Overloaded(f"all {slots} slots are in use, and {self._max_waiting} sessions wait for one")
            self._waiting.append(entry)
            self._condition.notify_all()
        return SpeechSession(self, entry)

    def close(self) -> None:
        """Stop: open sessions end with `SessionClosed`."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join(10)

    # ------------------------------------------------------------------------------------------- for the sessions

    def change(self, entry: _Entry, how: Callable[[Reading], None]) -> None:
        """Change what is read."""
        with self._condition:
            if entry.done:
                raise entry.error or SessionClosed("the speech has ended: open another session")
            how(entry.reading)
            self._condition.notify_all()

    def remove(self, entry: _Entry) -> None:
        """End a session without its other events."""
        with self._condition:
            entry.events.clear()
            self._finish(entry, None)

    def snapshot(self, entry: _Entry) -> SpeechSnapshot:
        """Let the engine's thread copy a session."""
        wanted = _Wanted()
        with self._condition:
            entry.wanted.append(wanted)
            self._condition.notify_all()
            self._condition.wait_for(lambda: wanted.snapshot is not None or entry.done)
            if wanted.snapshot is None:
                raise entry.error or SessionClosed("the speech has ended")
            return wanted.snapshot

    def take(self, entry: _Entry) -> list[SpeechEvent]:
        """The events so far."""
        with self._condition:
            events = list(entry.events)
            entry.events.clear()
            if not events and entry.error is not None:
                raise entry.error
            self._condition.notify_all()
            return events

    def wait(self, entry: _Entry) -> SpeechEvent | None:
        """The next event; none at the end. Those after it stay, so that `remove` drops them."""
        with self._condition:
            self._condition.wait_for(lambda: entry.events or entry.done)
            if not entry.events:
                if entry.error is not None:
                    raise entry.error
                return None
            if len(entry.events) == MAX_AHEAD:
                self._condition.notify_all()
            return entry.events.popleft()

    def ended(self, entry: _Entry) -> bool:
        """Whether there are no more events."""
        with self._condition:
            if entry.done and not entry.events and entry.error is not None:
                raise entry.error
            return entry.done and not entry.events

    # ------------------------------------------------------------------------------------------ in the engine's thread

    def _run(self) -> None:
        error: BaseException = SessionClosed("the engine is closed")
        try:
            while (entries := self._next()) is not None:
                self._step(entries)
        except BaseException as failure:  # whatever stops this thread, no session may wait for it forever
            self.failure = failure
            error = EngineError(f"the engine has stopped: {type(failure).__name__}: {failure}")
            error.__cause__ = failure
        with self._condition:
            self._closed = True
            for left in [*self._slots, *self._waiting]:
                if left is not None:
                    self._finish(left, error)

    def _next(self) -> list[_Entry] | None:
        """Wait until sessions can advance, and return them; None to stop."""
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._can_act())
                if self._closed:
                    return None
                admitted = self._admit()
                copies = [entry for entry in self._slots if entry is not None and entry.wanted]
            for entry in admitted:
                self._start(entry)
            self._copy(copies)
            with self._condition:
                taken = [entry for entry in self._slots if entry is not None]
                for entry in taken:
                    if entry.reading.finished:
                        self._finish(entry, None)
                ready = [entry for entry in taken if _ready(entry)]
            if ready:
                return ready

    def _can_act(self) -> bool:
        if self._waiting and None in self._slots:
            return True
        entries = [entry for entry in self._slots if entry is not None]
        return any(entry.wanted or _ready(entry) or entry.reading.finished for entry in entries)

    def _admit(self) -> list[_Entry]:
        admitted = []
        for slot, taken in enumerate(self._slots):
            if taken is None and self._waiting:
                entry = self._waiting.popleft()
                entry.slot, self._slots[slot] = slot, entry
                admitted.append(entry)
        return admitted

    def _start(self, entry: _Entry) -> None:
        slot = entry.slot
        if slot is None:  # cancelled in between
            return
        try:
            if entry.restored is not None:
                self.runner.restore(slot, entry.restored)
            else:
                self.runner.reset(slot, entry.reading.voice, entry.reading.options.seed)
        except ValueError as error:  # its voice is not one for this model
            with self._condition:
                self._finish(entry, error)

    def _copy(self, entries: list[_Entry]) -> None:
        for entry in entries:
            slot = entry.slot
            if slot is None:
                continue
            state = self.runner.snapshot(slot)
            with self._condition:
                for wanted in entry.wanted:
                    wanted.snapshot = SpeechSnapshot(entry.reading.copy(), state)
                entry.wanted.clear()
                self._condition.notify_all()

    def _step(self, entries: list[_Entry]) -> None:
        rows = [(entry.slot, entry) for entry in entries if entry.slot is not None]
        active_B = np.zeros(self.runner.slots, np.bool_)
        active_B[[slot for slot, _ in rows]] = True

        def decide(token_B: IntArray) -> tuple[IntArray, IntArray]:
            text_B = token_B.copy()
            forced_BK = np.full((len(token_B), self.runner.codebooks), UNGENERATED)
            with self._condition:
                for slot, entry in rows:
                    text_B[slot], forced_BK[slot] = entry.reading.decide(int(token_B[slot]))
            return text_B, forced_BK

        output = self.runner.step(decide, active_B)
        woken = []
        with self._condition:
            for slot, entry in rows:
                events = entry.reading.advance(output.pcm_BS[slot].copy() if output.audio_B[slot] else None)
                if entry.done:
                    continue
                entry.events.extend(events)
                if events and entry.wake is not None:
                    woken.append(entry.wake)
                if entry.reading.finished:
                    self._finish(entry, None)
            self._condition.notify_all()
        for wake in woken:
            wake()

    def _finish(self, entry: _Entry, error: BaseException | None) -> None:
        """End a session; the lock is held."""
        if entry.done:
            return
        entry.done, entry.error = True, error
        if entry.slot is not None:
            self._slots[entry.slot], entry.slot = None, None
        elif entry in self._waiting:
            self._waiting.remove(entry)
        self._condition.notify_all()
        if (wake := entry.wake) is not None:
            entry.wake = None  # it may refer to what refers to the session
            wake()

    def _check_open(self) -> None:
        if self.failure is not None:
            raise EngineError(f"the engine has stopped: {type(self.failure).__name__}: {self.failure}")
        if self._closed:
            raise SessionClosed("the engine is closed")


def _ready(entry: _Entry) -> bool:
    return not entry.done and len(entry.events) < MAX_AHEAD and entry.reading.ready
