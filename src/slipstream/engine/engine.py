"""The engine: one thread that runs the model for many sessions."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from slipstream.engine.live import LiveSession, check_width
from slipstream.engine.options import SessionOptions, StreamFormat
from slipstream.engine.port import Mailbox
from slipstream.engine.session import Session
from slipstream.engine.slots import Encode, SessionOp, SlotOperator, steering_of
from slipstream.engine.table import SessionTable
from slipstream.engine.turns import TurnOptions
from slipstream.errors import EngineError, Overloaded, SessionClosed
from slipstream.model.confidence import Calibration
from slipstream.model.runner import Runner, Steering, StepOutput
from slipstream.model.text import Tokenizer

_Row = tuple[int, Session]  # a slot and its session

MAX_SESSIONS_AHEAD = 2
"""Audio that waits is encoded ahead before steps of at most this number of sessions, one after another. A step of many
encodes their frames together, which is as fast, and none of them waits for the blocks of the others."""

CLOSE_SECONDS = 10.0
"""`close` stops waiting for a step that has taken this long."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of the engine.

    Args:
        seconds: How long the model took, with the operations before the step: what is encoded ahead, copies of slots.
        lag_seconds: How long the oldest frame of the step had waited.
        sessions: Sessions that the step advanced by a frame.
        slots: Slots of the model.
    """

    seconds: float
    lag_seconds: float
    sessions: int
    slots: int


class Engine:
    """Runs many sessions on one model, which only its own thread touches.

    The thread sleeps while no session has audio. When a step fails, every session ends with `EngineError`, and new
    sessions are refused.

    Args:
        runner: The model.
        tokenizer: Its tokenizer.
        silence_prefix_seconds: Silence that the model needs before the audio.
        turns: When a turn ends, for sessions that do not set it.
        calibration: What the model's probabilities mean; None leaves them as they are.
        max_waiting: Sessions that may wait for a slot.
        observer: Called with a report of each step in the engine's thread: it must be fast and must not raise.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        silence_prefix_seconds: float = 0.0,
        turns: TurnOptions | None = None,
        calibration: Calibration | None = None,
        max_waiting: int = 64,
        observer: Callable[[StepReport], None] | None = None,
    ) -> None:
        self.format = StreamFormat.of(
            runner,
            tokenizer,
            silence_prefix_seconds=silence_prefix_seconds,
            turns=turns,
            calibration=calibration,
        )
        self.slots = runner.slots
        self._runner = runner
        self._observer = observer
        self._operator = SlotOperator(runner)
        self._pcm_BS = np.zeros((runner.slots, runner.frame_samples), np.float32)
        self._sessions = SessionTable(runner.slots, max_waiting)
        self._closing = False
        self._retired = False
        self._step_began = 0.0
        self.failure: BaseException | None = None
        """The exception of a step that has stopped the engine."""
        self._thread = threading.Thread(target=self._run, name="slipstream-engine", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """Slots in use."""
        return self._sessions.scheduler.active

    def width_for(self, sessions: int) -> int:
        """See `AnyEngine.width_for`."""
        return self.slots // sessions

    @property
    def waiting(self) -> int:
        """Sessions that wait for a slot."""
        return self._sessions.scheduler.waiting

    @property
    def alive(self) -> bool:
        """Whether the engine runs: it has neither failed nor been closed."""
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
        """Open a session.

        When too few slots are free, it waits for them. It takes audio immediately; `Ready` is its event once it has a
        slot, and it ends with `Overloaded` when it gets none in time.

        Args:
            options: The session's options.
            wait: How long to wait for a slot, in seconds.
            wake: Called, mostly in the engine's thread, when the session has new events, or again has room for audio.
                It must be fast; if it raises, the session ends.

        Raises:
            Overloaded: Too few slots are free and the session may not wait, or too many wait already.
            ConfigError: The model does not have the delay or the slots that the hints require.
            SessionClosed: The engine is closed.
            EngineError: The engine has failed.
        """
        options = options or SessionOptions()
        check_width(options.hints.width, self.slots)
        session = Session(self.format.with_delay(options.hints.delay), options)
        mailbox = Mailbox(session, wake)
        self._sessions.add(mailbox, wait)
        return LiveSession(self._sessions, mailbox)

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more sessions, and finish the open ones: the audio they have sent is transcribed to its end.

        Returns:
            Whether all have ended within `timeout` seconds (None: no limit).
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._refuse(lambda: Overloaded("the engine is about to stop: it takes no more sessions"))
        return all(mailbox.wait(lambda mailbox: mailbox.ended, deadline) for mailbox in self._sessions.finish_all())

    def close(self) -> None:
        """Stop immediately: open sessions end with `SessionClosed`.

        A step that has taken `CLOSE_SECONDS` is abandoned; its thread ends with the process.
        """
        self._closing = True
        self._refuse(_closed)
        self._sessions.wake()
        self._thread.join(max(0.1, CLOSE_SECONDS - self.step_seconds))

    def retire(self) -> None:
        """Stop, without waiting, once no session is open. Safe in the garbage collector, in any thread."""
        self._retired = True
        self._sessions.wake()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _refuse(self, new_error: Callable[[], BaseException]) -> None:
        with self._sessions:
            if self.failure is None:
                self._sessions.refusal = new_error

    # ----------------------------------------------------------------------------------------- in the engine's thread

    def _run(self) -> None:
        try:
            step = self._launch()
            while step is not None:
                step.wait()
                self._step_began = 0.0
                # Sessions whose next frame depends on this output take it first, so that they can be in the next step.
                # The others take it while the device computes that step.
                self._advance(step, [row for row in step.rows if not row[1].predictable])
                following = self._launch(wait=False)
                self._advance(step, step.rows)
                if self._observer is not None:
                    self._observer(StepReport(step.seconds, step.lag, step.sessions, self.slots))
                step = following or self._launch()
            self._sessions.end_all(_closed)
        except BaseException as error:  # whatever stops this thread, no session may wait for it forever
            self._step_began = 0.0
            self.failure = error
            self._sessions.end_all(partial(_engine_error, error))

    def _launch(self, *, wait: bool = True) -> _Step | None:
        """Begin the step that is due, after a `wait` for it; None to stop, or without `wait` if none is due."""
        step = self._sessions.next_step(self._stopping, self._fill, wait=wait)
        if step is None:
            return None
        self._step_began = step.began = time.monotonic()
        self._operator.run(step.ops)
        active_B = np.zeros(self.slots, np.bool_)
        active_B[step.slots] = True
        if step.steering is None:
            step.collect = self._runner.launch(self._pcm_BS, active_B)
        else:
            step.collect = self._runner.launch(self._pcm_BS, active_B, step.steering)
        return step

    def _stopping(self, no_sessions: bool) -> bool:
        return self._closing or (self._retired and no_sessions)

    def _fill(self, sessions: list[Session], lag: float) -> _Step:
        self._operator.forget(self._sessions.scheduler.free)
        ops = self._take_ops(sessions)
        if self._runner.max_ahead and len(sessions) <= MAX_SESSIONS_AHEAD:
            for session in sessions:
                if (pcm_FS := session.encode_ahead(self._runner.max_ahead)) is not None:
                    ops.append((session.slots, Encode(pcm_FS)))
        rows, slots = [], []
        for session in sessions:
            slot, *others = session.slots
            session.fill(self._pcm_BS[slot])
            rows.append((slot, session))
            slots.append(slot)
            if others:
                self._pcm_BS[others] = self._pcm_BS[slot]
                slots += others
        return _Step(rows, slots, ops, lag, len(rows), steering_of(self.slots, sessions))

    def _advance(self, step: _Step, rows: list[_Row]) -> None:
        """Pass the output to the sessions of these rows, once."""
        if not rows:
            return
        # Only these rows: converting all of them would make a step for one session as slow as for all.
        slots = [slot if (lead := session.lead) is None else lead for slot, session in rows]
        found = step.output.candidates
        tokens = step.output.token_B[slots].tolist()
        logprobs = step.output.logprob_B[slots].tolist()
        pauses = step.output.pause_BH[slots].tolist()
        changed = []
        with self._sessions:
            now = time.monotonic()
            for (_, session), token, logprob, pause_H in zip(rows, tokens, logprobs, pauses, strict=True):
                choices = []
                if found is not None and session.steered:
                    choices = [found.of(slot, int(step.output.token_B[slot])) for slot in session.slots]
                try:
                    session.advance(token, logprob, pause_H, now, choices)
                except Exception as error:  # a defect in one session must not end the others
                    self._sessions.remove(session, error)
                else:
                    self._sessions.update(session)
                # Not if it is in the step that has begun meanwhile: its slots must not change before that is over.
                if session.has_ops and not session.in_step:
                    changed.append(session)
            ops = self._take_ops(changed)
        self._operator.run(ops)
        if len(rows) < len(step.rows):
            done = {session for _, session in rows}
            step.rows = [row for row in step.rows if row[1] not in done]
        else:
            step.rows = []

    def _take_ops(self, sessions: list[Session]) -> list[SessionOp]:
        """Collect what to do to the slots, with all that it takes to do it without the lock."""
        ops: list[SessionOp] = []
        for session in sessions:
            if session.has_ops and session.slots:
                ops += [(session.slots, op) for op in session.take_ops(self._operator.prefixes)]
        return ops


@dataclass(slots=True)
class _Step:
    """One step: its sessions by first slot, all slots, the operations before it, and how long the oldest frame waited.

    Its owner sets when it `began` and how to `collect` its output, and removes the `rows` whose session has the output.
    """

    rows: list[_Row]
    slots: list[int]
    ops: list[SessionOp]
    lag: float
    sessions: int
    steering: Steering | None
    began: float = 0.0
    seconds: float = 0.0
    collect: Callable[[], StepOutput] = field(init=False)
    output: StepOutput = field(init=False)

    def wait(self) -> None:
        """Wait for the output."""
        self.output = self.collect()
        self.seconds = time.monotonic() - self.began


def _closed() -> SessionClosed:
    return SessionClosed("the engine is closed")


def _engine_error(cause: BaseException) -> EngineError:
    error = EngineError(f"the engine has stopped: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
