"""The engine: one thread that owns the model, and the thread-safe face of the sessions that share it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import numpy as np

from slipstream.engine.live import LiveSession, Port
from slipstream.engine.scheduler import Scheduler
from slipstream.engine.session import Session, SessionOptions, SlotOp, StreamFormat
from slipstream.engine.turns import TurnOptions
from slipstream.errors import EngineError, Overloaded, SessionClosed
from slipstream.model.runner import Runner, State, StepOutput
from slipstream.model.text import Tokenizer

CLOSE_SECONDS = 10.0
"""How long the step in progress may have taken when `close` stops waiting for it."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of the engine: the model took `seconds` for a frame of `sessions` of its `slots`.

    `lag_seconds`: how long the oldest of those frames had waited when the step began.
    """

    seconds: float
    lag_seconds: float
    sessions: int
    slots: int


class Engine:
    """Runs many sessions on one model, which its own thread alone touches.

    The thread sleeps while no session has audio. When a step fails, every session ends with `EngineError`, and nobody
    can open another. `turns`: for sessions that set none. `observer` is told of every step, in that thread: it must be
    quick and must not raise.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        silence_prefix_seconds: float = 0.0,
        turns: TurnOptions | None = None,
        max_waiting: int = 64,
        observer: Callable[[StepReport], None] | None = None,
    ) -> None:
        self.format = StreamFormat(
            tokenizer=tokenizer,
            frame_samples=runner.frame_samples,
            frame_rate=runner.frame_rate,
            delay_frames=runner.delay_frames,
            silence_frames=math.ceil(silence_prefix_seconds * runner.frame_rate),
            turns=turns or TurnOptions(),
        )
        self._runner = runner
        self._scheduler = Scheduler(runner.slots, max_waiting=max_waiting)
        self._observer = observer
        self._pcm_BS = np.zeros((runner.slots, runner.frame_samples), np.float32)
        # Reentrant, since a session may be collected as garbage, and so given up, while its thread holds the lock.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._changing = _Changing(self)
        self._sleeps_until = 0.0
        self._ports: dict[Session, Port] = {}
        self._to_signal: list[Port] = []
        self._given_up: deque[Session] = deque()
        self._draining = False
        self._closing = False
        self._retired = False
        self._step_began = 0.0
        self.failure: BaseException | None = None
        """What a step raised, which has stopped the engine."""
        self._thread = threading.Thread(target=self._run, name="slipstream-engine", daemon=True)
        self._thread.start()

    @property
    def slots(self) -> int:
        return self._scheduler.slots

    @property
    def active(self) -> int:
        """Sessions that have a slot."""
        return self._scheduler.active

    @property
    def waiting(self) -> int:
        """Sessions that wait for one."""
        return self._scheduler.waiting

    @property
    def alive(self) -> bool:
        """Whether it runs: it has neither failed nor been closed."""
        return self._thread.is_alive()

    @property
    def step_seconds(self) -> float:
        """How long the step in progress has taken so far; 0 between steps."""
        began = self._step_began
        return time.monotonic() - began if began else 0.0

    def open(
        self,
        options: SessionOptions | None = None,
        *,
        wait: float = 0.0,
        wake: Callable[[], None] | None = None,
    ) -> LiveSession:
        """Open a session. When every slot is taken it waits its turn, for up to `wait` seconds.

        Audio may be sent at once; `Ready` tells that it has its slot. A wait in vain ends the session with
        `Overloaded`. `wake` is called, mostly in the engine's thread, when there are new events, or room for audio
        again after there was none: it must be quick, and if it raises, the session ends.
        Raises `Overloaded` when there is neither a slot nor a place to wait, `SessionClosed` after `close`,
        `EngineError` after the engine has failed.
        """
        session = Session(self.format, options or SessionOptions())
        port = Port(session, wake)
        with self._changing:
            if self.failure is not None:
                raise _engine_error(self.failure)
            if self._draining:
                raise Overloaded("the engine is about to stop: it takes no more sessions")
            if self._closing:
                raise SessionClosed("the engine was closed: it takes no more sessions")
            self._end_given_up()
            self._scheduler.add(session, time.monotonic(), wait)
            self._ports[session] = port
            self._changed(port)
        return LiveSession(self, port)

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more sessions, and finish those there are: what they have sent is heard, flushed and told.

        Returns whether all have ended within `timeout` seconds (None: however long it takes).
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self._changing:
            self._draining = True
            ports = list(self._ports.values())
            for port in ports:
                port.session.finish(time.monotonic())
                self._changed(port)
        return all(port.wait(lambda port: port.ended, deadline) for port in ports)

    def close(self) -> None:
        """Stop at once: sessions that are still open end with `SessionClosed`.

        A step that has taken `CLOSE_SECONDS` is abandoned; its thread ends with the process.
        """
        with self._lock:
            self._closing = True
            self._work.notify()
        self._thread.join(max(0.1, CLOSE_SECONDS - self.step_seconds))

    def retire(self) -> None:
        """Stop without waiting once no session is open. Called by the garbage collector, at any time and place."""
        self._retired = True
        with self._lock:
            self._work.notify()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ----------------------------------------------------------------------------------------- the engine's own thread

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                self._step_began = time.monotonic()
                self._step(batch)
                self._step_began = 0.0
            self._end_all(lambda: SessionClosed("the engine was closed"))
        except BaseException as error:  # whatever stops this thread, no session may wait for it for ever
            self._step_began = 0.0
            self.failure = error
            self._end_all(partial(_engine_error, error))

    def _next_batch(self) -> _Batch | None:
        """Sleep until a step is due; None when the engine closes."""
        while True:
            with self._changing:
                self._end_given_up()
                if self._closing or (self._retired and not self._ports):
                    return None
                now = time.monotonic()
                self._expire(now)
                lag = self._scheduler.oldest_wait(now)
                if sessions := self._scheduler.take(now):
                    return self._fill(sessions, lag)
                if not self._to_signal:
                    self._sleep(self._scheduler.delay(now), now)

    def _sleep(self, delay: float | None, now: float) -> None:
        self._sleeps_until = math.inf if delay is None else now + delay
        self._work.wait(delay)
        self._sleeps_until = 0.0

    def _fill(self, sessions: list[Session], lag: float) -> _Batch:
        ops = self._take_ops(sessions)
        rows = []
        for session in sessions:
            slot = _slot(session)
            session.fill(self._pcm_BS[slot])
            rows.append((slot, session))
        return _Batch(rows, ops, lag)

    def _step(self, batch: _Batch) -> None:
        self._run_ops(batch.ops)
        active_B = np.zeros(self.slots, np.bool_)
        active_B[[slot for slot, _ in batch.rows]] = True
        began = time.monotonic()
        output = self._runner.step(self._pcm_BS, active_B)
        seconds = time.monotonic() - began
        with self._changing:
            self._hand_out(batch, output)
            ops = self._take_ops([session for _, session in batch.rows])
        self._run_ops(ops)
        if self._observer is not None:
            self._observer(StepReport(seconds, batch.lag, len(batch.rows), self.slots))

    def _hand_out(self, batch: _Batch, output: StepOutput) -> None:
        # Only the rows of the batch: a step of few sessions must not cost what the whole house does.
        slots = [slot for slot, _ in batch.rows]
        tokens = output.token_B[slots].tolist()
        logprobs = output.logprob_B[slots].tolist()
        pauses = output.pause_BH[slots].tolist()
        now = time.monotonic()
        for (slot, session), token, logprob, pause_H in zip(batch.rows, tokens, logprobs, pauses, strict=True):
            frame_S = self._pcm_BS[slot]
            mean_square = float(frame_S @ frame_S) / len(frame_S)
            try:
                session.advance(token, logprob, pause_H, mean_square, now)
            except Exception as error:  # the fault of one session ends that session, not its neighbours
                self._end(session, error)
            else:
                if (port := self._ports.get(session)) is not None:
                    self._changed(port)

    def _take_ops(self, sessions: list[Session]) -> list[_Op]:
        """What must be done to the slots, with all it needs, so that it can be done without the lock."""
        ops = []
        for session in sessions:
            if session.has_ops and session.slot is not None:
                for kind in session.take_ops():
                    state = session.saved if kind is SlotOp.RESTORE else None
                    ops.append(_Op(kind, session.slot, session, state))
        return ops

    def _run_ops(self, ops: list[_Op]) -> None:
        if resets := [op.slot for op in ops if op.kind is SlotOp.RESET]:
            self._runner.reset(resets)
        for op in ops:
            if op.kind is SlotOp.SNAPSHOT:
                op.session.saved = self._runner.snapshot(op.slot)
            elif op.kind is SlotOp.RESTORE:
                self._runner.restore(op.slot, op.state)
                op.session.saved = None

    # -------------------------------------------------------------------------------------- under the lock, any thread

    def _wake_if_due(self) -> None:
        """Wake the engine's thread if, by what has changed, it sleeps too long."""
        now = time.monotonic()
        if now < self._sleeps_until:
            delay = self._scheduler.delay(now)
            if delay is not None and now + delay < self._sleeps_until:
                self._work.notify()

    def _take_signals(self) -> list[Port]:
        ports, self._to_signal = self._to_signal, []
        return ports

    def _signal(self, ports: list[Port]) -> None:
        """Tell the listeners; without the lock, since nobody knows what they do."""
        for port in ports:
            try:
                port.signal()
            except Exception as error:  # a listener that fails ends its own session
                with self._changing:
                    self._end(port.session, error)

    def _changed(self, port: Port) -> None:
        """Pass on what happened in a session, and look at it again."""
        session = port.session
        if port.collect():
            self._to_signal.append(port)
        if session.done:
            self._end(session, None)
        elif port.overfull:
            self._end(session, Overloaded(f"{len(port.unread)} events wait for a reader that does not come"))
        else:
            self._scheduler.refresh(session, time.monotonic())

    def _end(self, session: Session, error: BaseException | None) -> None:
        following = self._scheduler.remove(session, time.monotonic())
        if (port := self._ports.pop(session, None)) is not None:
            port.end(error)
            self._to_signal.append(port)
        if following is not None:
            self._changed(self._ports[following])

    def _end_all(self, new_error: Callable[[], BaseException]) -> None:
        """End every session, each with an error of its own: one that is raised holds the stack of who caught it."""
        with self._changing:
            self._closing = True
            for session in list(self._ports):
                self._end(session, new_error())

    def _expire(self, now: float) -> None:
        for session in self._scheduler.expire(now):
            self._end(
                session, Overloaded(f"all {self.slots} slots stayed taken for as long as this session would wait")
            )

    def _end_given_up(self) -> None:
        while self._given_up:
            self._end(self._given_up.popleft(), None)

    def _give_up(self, session: Session) -> None:
        """A session's owner is gone. Called by the garbage collector, at any time and place: hence only this."""
        self._given_up.append(session)
        with self._lock:
            self._work.notify()


class _Changing:
    """Holds the engine's lock; in the end wakes its thread if a step is due, and tells the listeners what happened."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        self._engine._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._engine._wake_if_due()
            ports = self._engine._take_signals()
        finally:
            self._engine._lock.release()
        self._engine._signal(ports)


@dataclass(frozen=True, slots=True)
class _Op:
    """Something to be done to a slot; `state`: what to restore."""

    kind: SlotOp
    slot: int
    session: Session
    state: State


@dataclass(frozen=True, slots=True)
class _Batch:
    """One step: its sessions by slot, what must be done to the slots first, how long the oldest frame has waited."""

    rows: list[tuple[int, Session]]
    ops: list[_Op]
    lag: float


def _slot(session: Session) -> int:
    assert session.slot is not None, "only admitted sessions are stepped"
    return session.slot


def _engine_error(cause: BaseException) -> EngineError:
    error = EngineError(f"the engine has stopped: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
