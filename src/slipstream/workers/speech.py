"""Text to speech for workers: one process runs the model, and each worker has a connection to it.

A worker sends text and cancellations; events of a session come back, as far as the worker has read those before.
Messages are tuples of a kind, the number of a session and values, pickled: both ends are processes of one server.
"""

from __future__ import annotations

import base64
import itertools
import os
import pickle
import select
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeAlias

from slipstream import errors
from slipstream.dialects.models import SpeechInfo
from slipstream.engine.reading import SpeechEvent
from slipstream.engine.speech import SpeechSession
from slipstream.errors import EngineError, SessionClosed, SlipstreamError
from slipstream.model.speech import Voice
from slipstream.server.run import log_to_stderr
from slipstream.server.speaking import ServedSpeaker
from slipstream.workers.link import encode

OpenSpeaker: TypeAlias = Callable[[], ServedSpeaker]
UNREAD_EVENTS = 64
"""Events of a session that may be on their way to a worker, or wait there."""
CHECK_SECONDS = 0.5
READERS = 4
"""Voices that are read at the same time."""
_LOST = "the process of text to speech has ended"


@dataclass(frozen=True, slots=True)
class SpeechJob:
    """The job of the process with the model. `open_speaker`: loads it; it can be pickled."""

    open_speaker: OpenSpeaker
    log_level: str

    def run(self, end: socket.socket) -> None:
        """Load the model, and run it until the parent stops it or is gone, or a step fails."""
        log_to_stderr(self.log_level, {"process": "speech"})
        try:
            speaker = self.open_speaker()
            info = base64.b64encode(pickle.dumps(speaker.info)).decode()
        except SlipstreamError as error:
            end.sendall(encode({"failed": str(error), "kind": type(error).__name__}))
            sys.exit(1)
        end.sendall(encode({"ready": "", "speech": info}))
        while (failure := speaker.speaker.engine.failure) is None:
            if not select.select([end], [], [], CHECK_SECONDS)[0]:
                continue
            data, passed, _, _ = socket.recv_fds(end, 1 << 16, 64)
            for descriptor in passed:
                SpeechHost(speaker, Connection(descriptor))
            if not data or b"stop" in data:
                os._exit(0)
        end.sendall(encode({"failed": f"{type(failure).__name__}: {failure}", "kind": "EngineError"}))
        os._exit(1)


@dataclass
class _Hosted:
    """A session for a worker. What comes before it is open waits in `early`."""

    session: SpeechSession | None = None
    early: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    unread: int = 0


class SpeechHost:
    """The sessions of one worker, in the process of the model. They end when the worker does.

    Args:
        speaker: The model.
        connection: To the worker.
    """

    def __init__(self, speaker: ServedSpeaker, connection: Connection) -> None:
        self._speaker, self._connection = speaker, connection
        self._sessions: dict[int, _Hosted] = {}
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._woken: SimpleQueue[int | None] = SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS)
        for work in (self._receive, self._send):
            threading.Thread(target=work, daemon=True).start()

    def _receive(self) -> None:
        """Run the commands of the worker until its channel closes."""
        try:
            while True:
                kind, id, *values = self._connection.recv()
                if kind == "open":
                    self._sessions[id] = _Hosted()
                    self._readers.submit(self._open, id, self._sessions[id], *values)
                elif hosted := self._sessions.get(id):  # None: it has ended meanwhile
                    self._take(id, hosted, kind, tuple(values))
        except (OSError, EOFError):
            pass
        self._woken.put(None)
        self._readers.shutdown(wait=False)
        for hosted in list(self._sessions.values()):
            self._change(hosted, "cancel")

    def _open(self, id: int, hosted: _Hosted, voice: Voice | None) -> None:
        """Open a session, with what has come for it meanwhile. Reading its voice may take a while."""
        try:
            found = voice if voice and voice.embeddings else self._speaker.voice(voice.name if voice else None)
            session = self._speaker.open(found, lambda: self._woken.put(id))
        except Exception as error:
            self._end(id, [], error)
            return
        with self._lock:
            hosted.session = session
            failures = [_call(session, kind, values) for kind, values in hosted.early]
        if failure := next(filter(None, failures), None):
            self._fail(id, hosted, failure)
        self._woken.put(id)  # what woke it before this is not lost

    def _take(self, id: int, hosted: _Hosted, kind: str, values: tuple[Any, ...]) -> None:
        if kind == "read":
            with self._lock:
                hosted.unread -= values[0]
            self._woken.put(id)
            return
        if kind == "cancel":
            self._sessions.pop(id, None)
        if error := self._change(hosted, kind, *values):
            self._fail(id, hosted, error)

    def _change(self, hosted: _Hosted, kind: str, *values: Any) -> Exception | None:
        """Change a session, now or when it is open. Returns an error, such as of its text."""
        with self._lock:
            if hosted.session is None:
                hosted.early.append((kind, values))
                return None
            return _call(hosted.session, kind, values)

    def _send(self) -> None:
        """Send the events of the sessions that have some."""
        while (id := self._woken.get()) is not None:
            hosted = self._sessions.get(id)
            if hosted is None or hosted.session is None or hosted.unread >= UNREAD_EVENTS:
                continue
            ended, failure = True, None
            events: list[SpeechEvent] = []
            try:
                events = hosted.session.poll()
                ended = hosted.session.ended
            except Exception as error:
                failure = error
            with self._lock:
                hosted.unread += len(events)
            if ended:
                self._end(id, events, failure)
            elif events:  # nothing else wakes a request that waits for its first events
                self._put(id, events, False, None)

    def _fail(self, id: int, hosted: _Hosted, error: Exception) -> None:
        self._end(id, [], error)  # first: `_send` would report the end of a cancelled session without its error
        self._change(hosted, "cancel")

    def _end(self, id: int, events: list[SpeechEvent], error: Exception | None) -> None:
        self._sessions.pop(id, None)
        name = type(error).__name__
        kind = "ConfigError" if isinstance(error, ValueError) and not hasattr(errors, name) else name
        self._put(id, events, True, error and (kind, str(error)))

    def _put(self, *message: Any) -> None:
        with self._writing, suppress(OSError):  # `_receive` finds that the worker is gone
            self._connection.send(message)


def _call(session: SpeechSession, kind: str, values: tuple[Any, ...]) -> Exception | None:
    """Feed, flush, end or cancel a session. Returns an error, such as of its text."""
    try:
        getattr(session, kind)(*values)
    except (SessionClosed, EngineError):  # the worker gets what has ended it
        return None
    except Exception as error:
        return error
    return None


class RemoteSpeaker:
    """The model, for the server of a worker: as `ServedSpeaker`, but what keeps a session from opening ends it.

    Args:
        connection: To the process of the model.
        info: Of the model.
    """

    def __init__(self, connection: Connection, info: SpeechInfo) -> None:
        self.info, self.sample_rate = info, info.sample_rate
        self._connection = connection
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._sessions: dict[int, RemoteSession] = {}
        self._lost = False
        threading.Thread(target=self._receive, daemon=True).start()

    def voice(self, name: str | None) -> Voice | None:
        """Return a voice that the process of the model reads when a session opens."""
        return Voice(name) if name else None

    def open(self, voice: Voice | None, wake: Callable[[], None]) -> RemoteSession:
        """Open a session. Raises `EngineError` when the process of the model has ended."""
        if self._lost:
            raise EngineError(_LOST)
        id = next(self._ids)
        session = self._sessions[id] = RemoteSession(self, id, wake)
        self.send("open", id, voice)
        return session

    def send(self, kind: str, id: int, *values: Any) -> None:
        """Send a message; for `RemoteSession`."""
        with self._lock, suppress(OSError):  # `_receive` ends the sessions
            self._connection.send((kind, id, *values))
        if kind == "cancel":
            self._sessions.pop(id, None)

    def _receive(self) -> None:
        try:
            while True:
                id, events, ended, error = self._connection.recv()
                if session := self._sessions.pop(id, None) if ended else self._sessions.get(id):
                    session.take(events, ended, error)
        except (OSError, EOFError):
            self._lost = True
        for session in list(self._sessions.values()):
            session.take([], True, ("EngineError", _LOST))


class RemoteSession:
    """A session in the process of the model: as `SpeechSession`, for an event loop."""

    def __init__(self, speaker: RemoteSpeaker, id: int, wake: Callable[[], None]) -> None:
        self._speaker, self._id, self._wake = speaker, id, wake
        self._events: deque[SpeechEvent] = deque()
        self._done = False
        self._error: SlipstreamError | None = None

    def feed(self, text: str) -> None:
        """Add text."""
        self._speaker.send("feed", self._id, text)

    def flush(self) -> None:
        """Speak the text so far without waiting for more."""
        self._speaker.send("flush", self._id)

    def end(self) -> None:
        """There is no more text."""
        self._speaker.send("end", self._id)

    def cancel(self) -> None:
        """Stop within one step."""
        self._done = True
        self._events.clear()
        self._speaker.send("cancel", self._id)

    def poll(self) -> list[SpeechEvent]:
        """Return the events so far. Raises what ended the session, after its last event."""
        events = [self._events.popleft() for _ in range(len(self._events))]
        if events:
            self._speaker.send("read", self._id, len(events))
        elif self._error is not None:
            raise self._error
        return events

    @property
    def ended(self) -> bool:
        """Whether the session gives no more events. Raises what ended it."""
        if self._done and not self._events and self._error is not None:
            raise self._error
        return self._done and not self._events

    def take(self, events: list[SpeechEvent], ended: bool, error: tuple[str, str] | None) -> None:
        """Take what has come from the process of the model, in another thread."""
        self._events.extend(events)
        if error is not None:
            self._error = getattr(errors, error[0], EngineError)(error[1])
        self._done = self._done or ended
        with suppress(RuntimeError):  # the event loop has ended
            self._wake()
